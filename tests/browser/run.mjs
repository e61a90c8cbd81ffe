// Pages in a real browser against a real gateway. Run by test_browser.py, which says what must come of it: a line of JSON
// for each case on the standard output.

import { createRequire } from "node:module";

import { Network, servePage } from "./support.mjs";

const { chromium } = createRequire(new URL("../node/package.json", import.meta.url))("playwright-core");
const { GATEWAY, SIMULATOR, KEY, PAGE_PORT, CHROMIUM } = process.env;

const PAGE = `http://app.localhost:${PAGE_PORT}`;
const CHAT = "/v1/chat/completions";
const PATIENCE = 20_000; // milliseconds, for one step
const LONGEST = 60_000; // … and for a case
const FLAGS = [
  "--no-sandbox",
  "--disable-gpu",
  "--disable-quic",
  "--no-first-run",
  "--disable-background-networking",
  "--disable-component-update",
  "--disable-sync",
];

const sleep = (ms) => new Promise((go) => setTimeout(go, ms));
const json = async (url, init) => (await fetch(url, init)).json();
const asking = (model) => ({ model, messages: [{ role: "user", content: `hello, ${model} — ü€😀` }] });

/** A key for a page. */
async function mint(more = {}) {
  const headers = { authorization: `Bearer ${KEY}`, "content-type": "application/json" };
  const body = JSON.stringify({ ttl_seconds: 60, origins: [PAGE], ...more });
  return (await json(`${GATEWAY}/v1/browser_tokens`, { method: "POST", headers, body })).token;
}

/** The text that the simulator has for this model, and no gateway in between. */
async function whole(model) {
  const headers = { "content-type": "application/json" };
  const reply = await fetch(`${SIMULATOR}${CHAT}`, { method: "POST", headers, body: JSON.stringify({ ...asking(model), stream: true }) });
  const lines = (await reply.text()).split("\n").filter((line) => line.startsWith("data: {"));
  return lines.map((line) => JSON.parse(line.slice(6)).choices[0]?.delta?.content ?? "").join("");
}

/** How often the simulator was asked for this model by the gateway; `whole` was the other time. */
const calls = async (model) => (await json(`${SIMULATOR}/ledger`)).models[model] - 1;

const browser = await chromium.launch({ executablePath: CHROMIUM, args: FLAGS });
await servePage(Number(PAGE_PORT), GATEWAY);

/** A browser of its own: its six connections are shared with no other case. */
async function fresh() {
  const context = await browser.newContext();
  context.setDefaultTimeout(PATIENCE);
  return context;
}

/** Opens the page, which talks to `origin`. */
async function open(context, origin, keys = mint) {
  const page = await context.newPage();
  page.violations = [];
  await page.exposeFunction("mint", keys);
  await page.exposeFunction("violated", (what) => page.violations.push(what));
  await page.addInitScript(() =>
    document.addEventListener("securitypolicyviolation", (told) => window.violated(`${told.violatedDirective} ${told.blockedURI}`)));
  await page.goto(`${PAGE}/?talks-to=${origin}`);
  await page.waitForFunction(() => window.ready);
  return page;
}

const ask = (page, origin, body, path = CHAT) =>
  page.evaluate(([url, body]) => window.ask(url, body), [`${origin}${path}`, body]);
const chunks = (page, count) => page.evaluate((count) => window.chunks(count), count);

/** The usual case: one page streams one answer while `act` happens. */
async function streamed(model, act = async () => {}, { keys, reading = ask } = {}) {
  const network = await new Network().listen(GATEWAY);
  const context = await fresh();
  const page = await open(context, network.origin, keys);
  const expected = whole(model);
  const reply = reading(page, network.origin, asking(model));
  reply.catch(() => {}); // a page that reloads forgets it
  const later = await act({ page, context, network, chunks: (count) => chunks(page, count) });
  const seen = await (later ?? reply);
  return { ...seen, expected: await expected, calls: await calls(model), violations: page.violations };
}

/** A page that hides and is shown again. */
const show = (page, hidden) =>
  page.evaluate((hidden) => {
    Object.defineProperty(document, "hidden", { value: hidden, configurable: true });
    Object.defineProperty(document, "visibilityState", { value: hidden ? "hidden" : "visible", configurable: true });
    document.dispatchEvent(new Event("visibilitychange", { bubbles: true }));
  }, hidden);

/** Seven tabs of one browser, so many of them first; long enough that who had to wait for another's end is noticed. */
async function tabs(name, first) {
  const context = await fresh();
  const models = [...Array(7).keys()].map((tab) => `sim-case=${name}${tab}-tokens=100-gap=0.035`);
  const pages = [];
  for (const _ of models) pages.push(await open(context, GATEWAY));
  const expected = models.map(whole);
  const begin = (model, tab) => ask(pages[tab], GATEWAY, asking(model));
  const early = models.slice(0, first).map(begin);
  await Promise.all(early.map((_, tab) => chunks(pages[tab], 1)));
  const seen = await Promise.all([...early, ...models.slice(first).map((model, tab) => begin(model, tab + first))]);
  const turns = () => performance.getEntriesByType("resource").filter(({ name }) => name.includes("hold=1")).length;
  return {
    tabs: seen.map(({ text, error, first, end }) => ({ text, error, first, end })),
    expected: await Promise.all(expected),
    turns: await Promise.all(pages.map((page) => page.evaluate(turns))),
    calls: await Promise.all(models.map(calls)),
    violations: pages.flatMap((page) => page.violations),
  };
}

const cases = {
  stream: () => streamed("sim-case=stream-tokens=60-gap=0.002"),

  cut: () =>
    streamed("sim-case=cut-tokens=150-gap=0.01", async ({ network, chunks }) => {
      for (const count of [5, 25, 60]) {
        await chunks(count);
        network.cut();
        await sleep(200);
        network.up();
      }
    }),

  stop: async () => {
    const { aborted } = await json(`${SIMULATOR}/ledger`);
    const model = "sim-case=stop-tokens=500-gap=0.02";
    const network = await new Network().listen(GATEWAY);
    const page = await open(await fresh(), network.origin);
    const reply = ask(page, network.origin, asking(model));
    await chunks(page, 5);
    const pressed = Date.now();
    await page.evaluate(() => window.stop());
    const seen = await reply;
    while ((await json(`${SIMULATOR}/ledger`)).aborted === aborted && Date.now() < pressed + PATIENCE) await sleep(5);
    const { id, token } = seen.started;
    const { status } = await json(`${GATEWAY}/v1/streams/${id}?token=${token}`);
    return { ...seen, status, aborted_after_ms: Date.now() - pressed, violations: page.violations };
  },

  expiry: async () => {
    const old = await mint({ ttl_seconds: 1 });
    const headers = { authorization: `Bearer ${old}`, origin: PAGE };
    while ((await fetch(`${GATEWAY}/v1/models`, { headers })).ok) await sleep(50);
    const given = [old];
    let asked = 0;
    const keys = () => (asked++, given.shift() ?? mint());
    return { ...(await streamed("sim-case=expiry-tokens=20-gap=0.001", undefined, { keys })), asked };
  },

  reload: () =>
    streamed("sim-case=reload-tokens=100-gap=0.01", async ({ page, network, chunks }) => {
      await chunks(20);
      await page.reload();
      await page.waitForFunction(() => window.ready);
      const before = await page.evaluate(() => window.seen.text.length);
      const seen = await page.evaluate((url) => window.resume(url), `${network.origin}${CHAT}`);
      return { ...seen, before };
    }),

  // a dead socket is noticed after 40 s otherwise: that the stream ends within the patience is the proof
  visibility: () =>
    streamed("sim-case=visibility-tokens=60-gap=0.01", async ({ page, network, chunks }) => {
      await chunks(10);
      await show(page, true);
      network.freeze();
      await sleep(100);
      await show(page, false);
    }),

  online: () =>
    streamed("sim-case=online-tokens=60-gap=0.01", async ({ context, network, chunks }) => {
      await chunks(10);
      network.freeze();
      await context.setOffline(true);
      await sleep(100);
      await context.setOffline(false);
    }),

  // the browser's own EventSource on what POST /v1/streams answered
  source: () => {
    const reading = async (page, origin, body) => {
      const headers = { authorization: `Bearer ${KEY}`, "content-type": "application/json" };
      const made = await json(`${GATEWAY}/v1/streams`, { method: "POST", headers, body: JSON.stringify({ url: CHAT, body }) });
      return page.evaluate((url) => window.source(url), `${origin}${made.events_url}?token=${made.token}`);
    };
    const act = async ({ network, chunks }) => {
      await chunks(20);
      network.cut();
      network.up();
    };
    return streamed("sim-case=source-tokens=100-gap=0.01", act, { reading });
  },

  fanout: async () => {
    const page = await open(await fresh(), GATEWAY);
    const one = (name) => ({ custom_id: name, body: { ...asking("sim-case=fanout-tokens=5-gap=0.001"), stream: true } });
    const seen = await ask(page, GATEWAY, { requests: [one("a"), one("b")] }, "/v1/fanout");
    return { ...seen, violations: page.violations };
  },

  refusal: async () => {
    const page = await open(await fresh(), GATEWAY, () => mint({ models: ["another"] }));
    return { ...(await ask(page, GATEWAY, asking("sim-case=refusal"))), violations: page.violations };
  },

  tabs: () => tabs("tabs", 4),

  restored: () => tabs("restored", 7),

  // that nothing was violated above says something only if a violation is noticed
  policy: async () => {
    const page = await open(await fresh(), GATEWAY);
    await page.evaluate(() => fetch("http://127.0.0.1:9/").catch(() => {}));
    for (let tries = 0; tries < 100 && !page.violations.length; tries++) await sleep(10);
    return { violations: page.violations };
  },
};

async function run(name) {
  const began = Date.now();
  const facts = await Promise.race([
    cases[name]().catch((error) => ({ failed: error.stack })),
    sleep(LONGEST).then(() => ({ failed: "it did not come to an end" })),
  ]);
  console.log(JSON.stringify({ case: name, ms: Date.now() - began, ...facts }));
}

const crowds = ["tabs", "restored"]; // by themselves: the order in which things happen there counts
await Promise.all(crowds.map(run));
await Promise.all(Object.keys(cases).filter((name) => !crowds.includes(name)).map(run));
await browser.close();
process.exit();
