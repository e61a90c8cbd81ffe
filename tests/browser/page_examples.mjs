// The examples of docs/streaming.md in a real browser, as they stand there but for addresses and, where they are to
// fail or to take their time, the model. Run by ../journeys/test_streaming_page.py, which gives the blocks and says what
// must come of them: a line of JSON for each case on the standard output.

import { mkdtemp, rm, writeFile } from "node:fs/promises";
import { createServer, request } from "node:http";
import { createRequire } from "node:module";
import { tmpdir } from "node:os";
import { fileURLToPath } from "node:url";

const required = createRequire(new URL("../node/package.json", import.meta.url));
const { chromium } = required("playwright-core");
const { build } = required("esbuild");
const { GATEWAY, KEYED, SIMULATOR, KEY, PAGE_PORT, CHROMIUM, BLOCKS } = process.env;

const PAGE = `http://app.localhost:${PAGE_PORT}`;
const PATIENCE = 20_000; // milliseconds
const BLOCK = JSON.parse(BLOCKS);
const MODEL = "gpt-4o-mini";
const SLOW = "page-tokens=1000-gap=0.02";

const json = async (url, init) => (await fetch(url, init)).json();
const figures = () => json(`${SIMULATOR}/ledger`);

const QUESTION = [{ role: "user", content: "Hello" }];
const AS_STREAM = { model: MODEL, messages: QUESTION, stream: true };
const AS_FETCH = { model: MODEL, stream: true, messages: QUESTION }; // the simulator's answers depend on every byte

/** The text that the simulator has for an example, and no gateway in between. */
async function whole(asked) {
  const init = { method: "POST", headers: { "content-type": "application/json" }, body: JSON.stringify(asked) };
  const lines = (await (await fetch(`${SIMULATOR}/v1/chat/completions`, init)).text()).split("\n");
  const chunks = lines.filter((line) => line.startsWith("data: {")).map((line) => JSON.parse(line.slice(6)));
  return chunks.map(({ choices }) => choices[0]?.delta?.content ?? "").join("");
}

async function token() {
  const headers = { authorization: `Bearer ${KEY}`, "content-type": "application/json" };
  const body = JSON.stringify({ origins: [PAGE], models: [MODEL] });
  return (await json(`${KEYED}/v1/browser_tokens`, { method: "POST", headers, body })).token;
}

/** A block of the page's, with real addresses, and another model if one is named. */
const example = (name, gateway, model = MODEL) =>
  BLOCK[name].replaceAll("http://127.0.0.1:8000", gateway).replaceAll(MODEL, model);
const script = (code) => `<script type="module">\n${code}\nwindow.over = true;\n</script>`;

// what a page's own server does: pages, tokens for them, and the gateway under the same address
const pages = new Map();
const server = createServer(async (req, res) => {
  if (req.url.startsWith("/v1/")) return passOn(req, res);
  const page = req.url === "/my-back-end/token" ? await token() : pages.get(req.url);
  res.writeHead(page === undefined ? 404 : 200, { "content-type": "text/html; charset=utf-8" });
  res.end(page);
});
await new Promise((go) => server.listen(Number(PAGE_PORT), "127.0.0.1", go));

function passOn(req, res) {
  const { host, ...headers } = req.headers;
  const there = request(new URL(req.url, GATEWAY), { method: req.method, headers }, (reply) => {
    res.writeHead(reply.statusCode, reply.headers);
    reply.pipe(res);
  });
  there.on("error", () => res.destroy());
  res.on("close", () => there.destroy());
  req.pipe(there);
}

const browser = await chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox", "--disable-gpu"] });

/** Opens a page with this body. `page.errors` are those that nothing in it caught. */
async function open(name, html) {
  pages.set(`/${name}`, `<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,"><body>${html}`);
  const page = await (await browser.newContext()).newPage();
  page.setDefaultTimeout(PATIENCE);
  page.errors = [];
  page.on("pageerror", (error) => page.errors.push(error.message));
  await page.addInitScript(() => {
    const Real = EventSource;
    window.EventSource = class extends Real {
      constructor(url) {
        super(url);
        window.source = this;
      }
    };
  });
  await page.goto(`${PAGE}/${name}`);
  return page;
}

/** What a visitor would read. */
const textOf = (page) =>
  page.evaluate(() => {
    const shown = [...document.body.childNodes].filter((one) => one.nodeName !== "SCRIPT");
    return shown.map((one) => one.textContent).join("").trim();
  });

/** What is on the page once its script, and its EventSource if it has one, are through. */
async function seen(name, html, asked = AS_STREAM) {
  const page = await open(name, html);
  const through = page.waitForFunction(() => window.over && (window.source?.readyState ?? 2) === 2);
  const failed = new Promise((go) => page.once("pageerror", go));
  await Promise.race([through, failed]);
  through.catch(() => {});
  return { text: await textOf(page), errors: page.errors, expected: await whole(asked) };
}

/** The React example as an application: bundled, with what its page would say besides. */
async function bundle(code, more = "") {
  const folder = await mkdtemp(`${tmpdir()}/page-`);
  try {
    await writeFile(`${folder}/client.js`, await (await fetch(`${GATEWAY}/client.js`)).text());
    const { outputFiles } = await build({
      stdin: { contents: code + more, resolveDir: folder, loader: "jsx" },
      nodePaths: [fileURLToPath(new URL("../node/node_modules", import.meta.url))],
      define: { "process.env.NODE_ENV": '"development"' },
      jsx: "automatic",
      bundle: true,
      format: "esm",
      charset: "utf8",
      write: false,
    });
    return script(outputFiles[0].text.replaceAll("</script", "<\\/script"));
  } finally {
    await rm(folder, { recursive: true });
  }
}

const MOUNT = `
import { StrictMode } from "react";
import { createRoot } from "react-dom/client";
const root = createRoot(document.body.appendChild(document.createElement("main")));
const ask = (content) => [{ role: "user", content }];
window.show = (content) => root.render(<StrictMode><Answer messages={ask(content)} /></StrictMode>);
window.unmount = () => root.unmount();
window.show("Hello");
`;

const react = async (name, model) => open(name, await bundle(example("react", GATEWAY, model), MOUNT));
const streams = (page, not = "") =>
  page.waitForFunction((not) => {
    const { textContent } = document.querySelector("main");
    return textContent.length > 20 && !(not && textContent.startsWith(not.slice(0, 20)));
  }, not);

/** How often this model was asked so far. */
const asked = async (model) => (await figures()).models[model] ?? 0;

/** Waits until so many calls run upstream. */
async function running(count) {
  const until = Date.now() + PATIENCE;
  while ((await figures()).in_flight !== count && Date.now() < until) await new Promise((go) => setTimeout(go, 10));
  return (await figures()).in_flight;
}

const cases = {
  html: () => seen("html", example("html", KEYED).replace("</script>", "window.over = true;\n</script>")),
  readme: () => seen("readme", script(example("readme", GATEWAY))),
  "html, another model": () => seen("html-wrong", example("html", KEYED, "another")),
  source: () => seen("source", script(example("source", GATEWAY))),
  "source, with a token": async () => {
    const code = example("source", KEYED);
    const headed = code.replace(/ \}, \/\/ and (authorization: .*)/, ", $1 },");
    const page = `const browserToken = await (await fetch("/my-back-end/token")).text();\n`;
    return { ...(await seen("source-token", script(page + headed))), changed: headed !== code };
  },
  "source, refused": () => seen("source-refused", script(example("source", KEYED))),
  "source, failing": () => seen("source-failing", script(example("source", GATEWAY, "page-tokens=5-cut=2"))),
  fetch: () => seen("fetch", script(example("fetch", GATEWAY)), AS_FETCH),
  "fetch, refused": () => seen("fetch-refused", script(example("fetch", KEYED))),
  "fetch, failing": () => seen("fetch-failing", script(example("fetch", GATEWAY, "page-tokens=5-cut=2"))),
  "ai sdk": async () => {
    const code = example("ai", KEYED).replace('"any"', JSON.stringify(await token()));
    const stdout = `globalThis.process = { env: {}, stdout: { write: (text) => document.body.append(text) } };\n`;
    return seen("ai", (await bundle(code)).replace(">\n", `>\n${stdout}`));
  },

  react: async () => {
    const page = await react("react");
    const expected = await whole(AS_STREAM);
    await page.waitForFunction((text) => document.querySelector("main")?.textContent === text, expected);
    const alerts = await page.locator("[role=alert]").count();
    return { text: await textOf(page), alerts, errors: page.errors, expected };
  },
  "react, failing": async () => {
    const page = await react("react-failing", "page-status=400");
    await page.waitForSelector("[role=alert]");
    return { alert: await page.textContent("[role=alert]"), errors: page.errors };
  },
};

// these look at what runs upstream, and have it for themselves
const alone = {
  "react, unmounted": async () => {
    const page = await react("react-unmounted", SLOW);
    await streams(page);
    const before = await running(1);
    await page.evaluate(() => window.unmount());
    return { before, left: await running(0), text: await textOf(page), errors: page.errors };
  },
  "react, other messages": async () => {
    const page = await react("react-others", SLOW);
    await streams(page);
    const [before, text] = [await asked(SLOW), await textOf(page)];
    await page.evaluate(() => window.show("Another question"));
    await streams(page, text);
    const facts = { more: (await asked(SLOW)) - before, left: await running(1), errors: page.errors };
    await page.evaluate(() => window.unmount());
    await running(0); // a stream that only lost its page would run on
    return facts;
  },
};

async function run([name, act]) {
  const began = Date.now();
  const facts = await act().catch((error) => ({ failed: error.stack }));
  console.log(JSON.stringify({ case: name, ms: Date.now() - began, ...facts }));
}

await Promise.all(Object.entries(cases).map(run));
for (const one of Object.entries(alone)) await run(one);
await browser.close();
process.exit();
