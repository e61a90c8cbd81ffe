// `/client.js` against servers that do exactly what a test says. Run by tests/journeys/test_client_js.py, which tells in
// CLIENT where what is served lies; by hand, `node client.mjs` takes the source.
// Its clock runs 25 times as fast, and `waits` says how long (milliseconds) it meant to wait between two tries.

import assert from "node:assert/strict";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { beforeEach, test as testing } from "node:test";

const code = await readFile(process.env.CLIENT ?? new URL("../../app/http/client.js", import.meta.url));
const { stream } = await import(`data:text/javascript;base64,${code.toString("base64")}`);

const FASTER = 25;
const SILENCE = 40_000; // milliseconds that a connection may give nothing
const REPLY = 20_000; // … and that its reply may take to begin
const STARTED = { id: "stream_1", object: "stream", token: "t", events_url: "/v1/streams/stream_1/events" };
const DONE = "id: 99\nevent: done\ndata: [DONE]\n\n";
const ASK = { model: "m", messages: [] };

const real = { setTimeout, fetch };
let waits = [];
let luck = 0.5;
Math.random = () => luck;
globalThis.setTimeout = (act, ms, ...more) => {
  if (!new Error().stack.includes("data:text/javascript")) return real.setTimeout(act, ms, ...more); // Node's own
  if (ms > 0 && ms < SILENCE && ms !== REPLY) waits.push(ms);
  return real.setTimeout(act, ms / FASTER, ...more);
};
beforeEach(() => {
  waits = [];
  luck = 0.5;
});

const test = (name, act) => testing(name, { timeout: 10_000 }, act);
const event = (id, chunk = { n: id }) => `id: ${id}\ndata: ${JSON.stringify(chunk)}\n\n`;
const refusal = (status, error = {}, headers = {}) => (res) => {
  res.writeHead(status, { "content-type": "application/json", ...headers });
  res.end(JSON.stringify({ error: { message: "no", type: "t", param: null, code: null, ...error } }));
};
const made = (res) => res.writeHead(201).end(JSON.stringify(STARTED));
const sent = (...pieces) => async (res) => {
  res.writeHead(200, { "content-type": "text/event-stream" });
  for (const piece of pieces) res.write(piece);
  res.end();
};
/** Sends, and then nothing any more. */
const stalled = (...pieces) => (res) => {
  res.writeHead(200, { "content-type": "text/event-stream" }).write(pieces.join("") || ": hello\n\n");
};
const cut = (...pieces) => async (res) => {
  res.writeHead(200, { "content-type": "text/event-stream" });
  res.write(pieces.join("") || ": hello\n\n", () => res.destroy());
};
const lost = (res) => res.destroy();

/** Serves the scripts in this order, DELETEs aside, and runs `act` with the address; returns the requests. */
async function against(scripts, act) {
  const requests = [];
  const server = createServer(async (req, res) => {
    const pieces = [];
    for await (const piece of req) pieces.push(piece);
    const { method, url, headers } = req;
    const request = { method, url, headers, body: Buffer.concat(pieces).toString(), gone: new Promise((go) => res.on("close", go)) };
    requests.push(request);
    if (method == "DELETE") return res.end("{}");
    const script = scripts.shift();
    assert.ok(script, `not expected: ${method} ${url}`);
    script(res, request);
  });
  await new Promise((go) => server.listen(0, "127.0.0.1", go));
  server.unref(); // a test that hangs must not hold up the others
  try {
    await act(`http://127.0.0.1:${server.address().port}/v1/chat/completions`, requests);
    assert.equal(scripts.length, 0, "it should have asked more often");
  } finally {
    server.closeAllConnections();
    await new Promise((go) => server.close(go));
  }
  return requests;
}

/** Reads a stream to its end; what it gave. */
async function all(url, options = {}) {
  const found = [];
  await stream(url, ASK, { onChunk: (chunk, at) => void found.push({ chunk, ...at }), ...options });
  return found;
}
const ids = (found) => found.map(({ id }) => id);
const paths = (requests) => requests.map(({ method, url }) => `${method} ${url}`);
const reading = (after) => `GET /v1/streams/stream_1/events?token=t&after=${after}`;
const until = async (check) => {
  for (const give_up = Date.now() + 5000; !check(); await new Promise((go) => real.setTimeout(go, 2)))
    assert.ok(Date.now() < give_up, `did not come true: ${check}`);
};

// --- server-sent events, by the specification ---

const NASTY = Buffer.from(
  "\ufeffretry: 700\n\n" +
    ": a comment\n" +
    'id: 1\ndata: {"a":\ndata: "ü€😀\u2028"}\n\n' + // two lines of data, characters of two, three and four bytes
    'id: 2\r\nevent: chunk\r\ndata:{"b": 1}\r\nwhatever: else\r\n\r\n' +
    'id: 3\rdata: {"c": 1}\r\r' +
    "data\n\n" + // a field without a colon; its data is empty
    "id: 4\n\n" + // nothing to hand out
    'id: 5\nid: 9\0\ndata:  {"d": ": x"}\n\n' + // an id with NUL does not count
    ":\n::\n\n\n\r\n" +
    'nonsense\nid:6\nevent:result\ndata:{"e":\r\ndata:1}\n\n' +
    "retry: soon\nid: 7\nevent: done\ndata: [DONE]\n\n" +
    'id: 8\ndata: {"never": 1}\n\n',
);
const PARSED = [
  { chunk: { a: "ü€😀\u2028" }, id: 1, event: "message" },
  { chunk: { b: 1 }, id: 2, event: "chunk" },
  { chunk: { c: 1 }, id: 3, event: "message" },
  { chunk: { d: ": x" }, id: 3, event: "message" },
  { chunk: { e: 1 }, id: 6, event: "result" },
];

async function parsed(...pieces) {
  globalThis.fetch = async () => new Response(ReadableStream.from(pieces), { status: 200 });
  try {
    return await all("http://gateway/v1/chat/completions", { resume: { ...STARTED } });
  } finally {
    globalThis.fetch = real.fetch;
  }
}

test("a nasty stream is read alike, wherever it is cut in two", async () => {
  for (let place = 0; place <= NASTY.length; place++) {
    const pieces = [NASTY.subarray(0, place), NASTY.subarray(place)].filter((piece) => piece.length);
    assert.deepEqual(await parsed(...pieces), PARSED, `cut at ${place}`);
  }
});

test("a nasty stream is read alike in pieces of one, two and three bytes", async () => {
  for (const size of [1, 2, 3]) {
    const pieces = [];
    for (let place = 0; place < NASTY.length; place += size) pieces.push(NASTY.subarray(place, place + size));
    assert.deepEqual(await parsed(...pieces), PARSED);
  }
});

test("an event without its blank line is not handed out; it comes whole after the next connection", async () => {
  const half = 'id: 2\ndata: {"n": 2}\n';
  const requests = await against([sent(event(1), half), sent(event(2), DONE)], async (url) => {
    assert.deepEqual(ids(await all(url, { resume: { ...STARTED } })), [1, 2]);
  });
  assert.deepEqual(paths(requests), [reading(0), reading(1)]);
});

// --- the life of a stream ---

test("a stream is made, told about, read and over", async () => {
  let told;
  const requests = await against([made, sent("retry: 1000\n\n", event(1), event(2), DONE)], async (url) => {
    const found = await all(url.replace("/v1/", "/behind/v1/"), { key: "sk-1", onStart: (started) => (told = { ...started }) });
    assert.deepEqual(found, [
      { chunk: { n: 1 }, id: 1, event: "message" },
      { chunk: { n: 2 }, id: 2, event: "message" },
    ]);
  });
  assert.deepEqual(told, STARTED);
  assert.deepEqual(paths(requests), ["POST /behind/v1/streams", reading(0).replace("/v1/", "/behind/v1/")]);
  const [{ headers, body }, { headers: plain }] = requests;
  assert.deepEqual(JSON.parse(body), { url: "/v1/chat/completions", body: ASK });
  assert.equal(headers["content-type"], "application/json");
  assert.equal(headers.authorization, "Bearer sk-1");
  assert.match(headers["idempotency-key"], /^[!-~]{20,255}$/);
  assert.equal(plain.authorization, undefined, "the stream's own token opens it");
});

test("without a key no authorization is sent", async () => {
  const [{ headers }] = await against([made, sent(DONE)], (url) => all(url));
  assert.equal(headers.authorization, undefined);
});

test("a cut, a clean end and a refused connection are gone on from: nothing lost, nothing doubled", async () => {
  const scripts = [
    made,
    cut(event(1), event(2)),
    sent(event(2), event(3)), // again from 2, as a proxy's cache might
    lost,
    refusal(503),
    sent(event(1), event(3), event(7), DONE), // a number may be skipped
  ];
  const requests = await against(scripts, async (url) => {
    assert.deepEqual(ids(await all(url)), [1, 2, 3, 7]);
  });
  assert.deepEqual(paths(requests).slice(1), [reading(0), reading(2), reading(3), reading(3), reading(3)]);
});

test("what onStart gave goes on after a reload, without another POST", async () => {
  const saved = JSON.stringify({ ...STARTED, after: 4 });
  const requests = await against([sent(event(4), event(5), DONE)], async (url) => {
    assert.deepEqual(ids(await all(url, { resume: JSON.parse(saved), key: () => assert.fail("needs no key") })), [5]);
  });
  assert.deepEqual(paths(requests), [reading(4)]);
});

test("a stream that has ended, and was seen to, is over", async () => {
  await against([(res) => res.writeHead(204).end()], async (url) => {
    assert.deepEqual(await all(url, { resume: { ...STARTED, after: 99 } }), []);
  });
});

test("an error event rejects with its code", async () => {
  const last = 'id: 2\nevent: error\ndata: {"error": {"message": "cut", "type": "upstream_error", "param": null, "code": "upstream_cut"}}\n\n';
  await against([made, sent(event(1), last)], async (url) => {
    await assert.rejects(all(url), { name: "Error", message: "cut", code: "upstream_cut", type: "upstream_error", status: 200 });
  });
});

test("chunks are handed out one by one, and what onChunk throws ends it", async () => {
  const order = [];
  const slow = async ({ n }) => {
    order.push(`in ${n}`);
    await new Promise((go) => real.setTimeout(go, 5));
    order.push(`out ${n}`);
    if (n == 2) throw new RangeError("mine");
  };
  await against([made, stalled(event(1), event(2), event(3))], async (url, requests) => {
    await assert.rejects(stream(url, ASK, { onChunk: slow }), RangeError);
    await requests[1].gone;
  });
  assert.deepEqual(order, ["in 1", "out 1", "in 2", "out 2"]);
});

// --- what is tried again, and what is not ---

test("a POST whose answer was lost is sent again under the same Idempotency-Key, with the same key", async () => {
  let asked = 0;
  const half = (res) => res.writeHead(201, { "content-length": 500 }).write('{"id":', () => res.destroy());
  const scripts = [lost, half, refusal(409, { code: "idempotency_in_progress" }, { "x-should-retry": "true" }), made, sent(DONE)];
  const requests = await against(scripts, (url) => all(url, { key: async () => `token-${++asked}` }));
  const posts = requests.filter(({ method }) => method == "POST");
  assert.equal(posts.length, 4);
  assert.equal(new Set(posts.map(({ headers }) => headers["idempotency-key"])).size, 1);
  assert.deepEqual(new Set(posts.map(({ headers }) => headers.authorization)), new Set(["Bearer token-1"]));
  const [other] = await against([made, sent(DONE)], (url) => all(url));
  assert.notEqual(other.headers["idempotency-key"], posts[0].headers["idempotency-key"]);
});

test("a key that has expired is asked for once more, not twice", async () => {
  const expired = refusal(401, { code: "token_expired", type: "authentication_error" }, { "x-should-retry": "false" });
  let asked = 0;
  const key = async () => `token-${++asked}`;
  const requests = await against([expired, made, sent(event(1), DONE)], async (url) => {
    assert.deepEqual(ids(await all(url, { key })), [1]);
  });
  assert.deepEqual(requests.slice(0, 2).map(({ headers }) => headers.authorization), ["Bearer token-1", "Bearer token-2"]);
  assert.deepEqual(waits, [], "at once");
  await against([expired, expired], async (url) => {
    await assert.rejects(all(url, { key }), { status: 401, code: "token_expired", type: "authentication_error", message: "no" });
  });
  assert.equal(asked, 4);
});

test("a key function that fails rejects with its error, and nothing is sent", async () => {
  const key = async () => assert.fail("logged out");
  await against([], (url) => assert.rejects(all(url, { key }), /logged out/));
});

const FINAL = [
  [400, {}, {}],
  [402, {}, {}],
  [403, { code: null }, { "x-should-retry": "false" }],
  [404, {}, {}],
  [409, {}, { "x-should-retry": "false" }],
  [413, {}, {}],
  [429, { code: "insufficient_quota" }, { "x-should-retry": "false", "retry-after": "1" }],
  [507, { code: "storage_full" }, { "x-should-retry": "false" }],
];
for (const [status, error, headers] of FINAL)
  test(`a refusal that another try cannot mend is an error at once: ${status}`, async () => {
    const expected = { name: "Error", message: "no", type: "t", code: null, ...error, status };
    await against([refusal(status, error, headers)], (url) => assert.rejects(all(url), expected));
    await against([made, sent(event(1)), refusal(status, error, headers)], (url) => assert.rejects(all(url), expected));
  });

test("a refusal that is no JSON is an error, too", async () => {
  const page = (res) => res.writeHead(404, { "content-type": "text/html" }).end("<h1>nginx</h1>");
  await against([page], (url) => assert.rejects(all(url), { message: "HTTP 404", status: 404 }));
});

const MENDABLE = [
  [408, {}],
  [409, { "x-should-retry": "true" }],
  [429, {}],
  [429, { "x-should-retry": "true" }],
  [500, {}],
  [502, {}],
  [503, { "x-should-retry": "true" }],
  [504, {}],
];
for (const [status, headers] of MENDABLE)
  test(`a refusal that another try can mend is not shown: ${status} ${JSON.stringify(headers)}`, async () => {
    const no = refusal(status, {}, headers);
    await against([no, made, no, sent(event(1)), no, sent(DONE)], async (url) => {
      assert.deepEqual(ids(await all(url)), [1]);
    });
  });

test("Retry-After is waited for, before a POST and before a GET", async () => {
  const later = (seconds) => refusal(429, {}, { "retry-after": seconds });
  await against([later("2"), made, later("3"), sent(DONE)], (url) => all(url));
  assert.deepEqual(waits, [2000, 3000]);
});

test("tries back off from the server's `retry` to ten seconds, at random, and begin anew with a sign of life", async () => {
  const down = Array(5).fill(lost);
  await against([made, sent("retry: 800\n\n"), ...down, cut(event(1)), sent(DONE)], (url) => all(url));
  assert.deepEqual(waits, [400, 800, 1600, 3200, 5000, 5000, 400]);
  waits = [];
  luck = 0.25;
  await against([made, cut(event(1)), lost, sent(DONE)], (url) => all(url));
  assert.deepEqual(waits, [250, 500]);
});

test("a stream that cannot be made is given up, one that is under way is not", async () => {
  luck = 0;
  const full = refusal(503, { code: "draining" });
  await against(Array(7).fill(full), (url) => assert.rejects(all(url), { status: 503, code: "draining" }));
  await against(Array(7).fill(lost), (url) => assert.rejects(all(url), { status: 0 }));
  await against([made, ...Array(20).fill(lost), sent(event(1), DONE)], async (url) => {
    assert.deepEqual(ids(await all(url)), [1]);
  });
});

test("a connection that has gone silent is dropped and gone on from; pings keep it", async () => {
  const pinging = async (res) => {
    res.writeHead(200, { "content-type": "text/event-stream" });
    for (let ping = 0; ping < 6; ping++) {
      await new Promise((go) => real.setTimeout(go, (0.4 * SILENCE) / FASTER));
      res.write(": ping\n\n");
    }
    res.end(event(1) + DONE);
  };
  const requests = await against([made, pinging], async (url) => assert.deepEqual(ids(await all(url)), [1]));
  assert.equal(requests.length, 2);
  await against([made, stalled(event(1)), sent(event(2), DONE)], async (url, seen) => {
    assert.deepEqual(ids(await all(url)), [1, 2]);
    await seen[1].gone;
  });
});

test("a connection that gets no reply is dropped; a large upload may take its time", async () => {
  const never = () => {};
  await against([never, made, never, sent(event(1), DONE)], async (url) => assert.deepEqual(ids(await all(url)), [1]));
  const slow = (res) => real.setTimeout(() => made(res), (1.5 * SILENCE) / FASTER);
  await against([slow, sent(DONE)], (url) => stream(url, { prompt: "x".repeat(SILENCE) }, {}));
});

// --- stop ---

test("stop cancels upstream and rejects with the signal's reason; not one chunk comes after it", async () => {
  const stop = new AbortController();
  const found = [];
  const requests = await against([made, stalled(event(1), event(2), event(3))], async (url, seen) => {
    const running = stream(url, ASK, {
      signal: stop.signal,
      onChunk: ({ n }) => {
        found.push(n);
        if (n == 2) stop.abort();
      },
    });
    await assert.rejects(running, { name: "AbortError" });
    await until(() => seen.length == 3);
    await seen[1].gone;
  });
  assert.deepEqual(found, [1, 2]);
  assert.equal(paths(requests)[2], "DELETE /v1/streams/stream_1?token=t");
});

test("stop works while a connection waits for its reply, and while the next try is waited for", async () => {
  luck = 1;
  for (const script of [() => {}, refusal(503, {}, { "retry-after": "3000" })]) {
    const stop = new AbortController();
    const requests = await against([made, script], async (url, seen) => {
      const running = all(url, { signal: stop.signal });
      await until(() => seen.length == 2);
      await new Promise((go) => real.setTimeout(go, 20));
      stop.abort(new RangeError("mine"));
      await assert.rejects(running, RangeError);
      await until(() => seen.length == 3);
    });
    assert.equal(paths(requests)[2], "DELETE /v1/streams/stream_1?token=t");
  }
});

test("stop during the POST cancels upstream as soon as the id is known", async () => {
  const stop = new AbortController();
  const late = (res) => {
    stop.abort();
    real.setTimeout(() => made(res), 10);
  };
  const requests = await against([late], async (url, seen) => {
    const options = { signal: stop.signal, onStart: () => assert.fail("it was stopped") };
    await assert.rejects(all(url, options), { name: "AbortError" });
    await until(() => seen.length == 2);
  });
  assert.equal(paths(requests)[1], "DELETE /v1/streams/stream_1?token=t");
});

test("stop during a POST that is never answered rejects all the same", async () => {
  const stop = new AbortController();
  const requests = await against([() => stop.abort()], (url) =>
    assert.rejects(all(url, { signal: stop.signal }), { name: "AbortError" }));
  assert.equal(requests.length, 1);
  assert.equal(waits[0], 3000, "so long it may take to be told an id that can be cancelled");
});

test("what was stopped before it began sends nothing; what is over is not cancelled any more", async () => {
  await against([], (url) => assert.rejects(all(url, { signal: AbortSignal.abort() }), { name: "AbortError" }));
  const stop = new AbortController();
  const requests = await against([made, sent(DONE)], async (url) => {
    await all(url, { signal: stop.signal });
    stop.abort();
    await new Promise((go) => real.setTimeout(go, 20));
  });
  assert.equal(requests.length, 2);
});

// --- in a page ---

/** Runs `act` with globals of a page, which Node has not or has otherwise. */
async function inPage(globals, act) {
  const before = Object.fromEntries(Object.keys(globals).map((name) => [name, Object.getOwnPropertyDescriptor(globalThis, name)]));
  for (const [name, value] of Object.entries(globals))
    Object.defineProperty(globalThis, name, { value, configurable: true, writable: true });
  try {
    await act();
  } finally {
    for (const [name, described] of Object.entries(before)) {
      if (described) Object.defineProperty(globalThis, name, described);
      else delete globalThis[name];
    }
  }
}

function page() {
  const target = new EventTarget();
  const listening = new Set();
  const addEventListener = (name, act, options) => {
    listening.add(name);
    options.signal.addEventListener("abort", () => listening.delete(name));
    target.addEventListener(name, act, options);
  };
  const self = { document: { hidden: false } };
  return { globals: { self, addEventListener }, self, listening, fire: (name) => target.dispatchEvent(new Event(name)) };
}

for (const name of ["visibilitychange", "online"])
  test(`${name}: the connection, which may be dead, is replaced at once, and so is a wait`, async () => {
    const { globals, self, listening, fire } = page();
    luck = 1;
    const waiting = refusal(503, {}, { "retry-after": "3000" });
    await inPage(globals, () =>
      against([made, stalled(event(1)), stalled(event(2)), waiting, sent(event(3), DONE)], async (url, seen) => {
        const found = [];
        const running = stream(url, ASK, { onChunk: ({ n }) => void found.push(n) });
        await until(() => found.length == 1);
        self.document.hidden = true;
        fire(name); // a page that hides keeps its connection
        await new Promise((go) => real.setTimeout(go, 20));
        assert.equal(seen.length, 2);
        self.document.hidden = false;
        fire(name);
        await until(() => found.length == 2);
        await seen[1].gone;
        fire(name);
        await until(() => seen.length == 4);
        await new Promise((go) => real.setTimeout(go, 20));
        fire(name);
        await running;
        assert.deepEqual(found, [1, 2, 3]);
        assert.ok(waits.every((ms) => ms < 10 || ms == 3_000_000), String(waits));
      }));
    assert.equal(listening.size, 0, "its listeners are gone");
  });

function crowd(others) {
  const held = Array(others).fill({ name: "sluicegate", mode: "shared", clientId: "another" });
  held.push({ name: "of another program", mode: "exclusive", clientId: "another" });
  return {
    held,
    query: async () => ({ held: [...held], pending: [] }),
    request: async (name, options, act) => {
      const lock = { name, mode: options.mode, clientId: "this" };
      held.push(lock);
      await act(lock);
      held.splice(held.indexOf(lock), 1);
    },
  };
}

test("up to four streams of a browser keep their connections, from the fifth on they take turns", async () => {
  for (const [others, hold] of [[0, ""], [3, ""], [4, "&hold=1"], [30, "&hold=1"]]) {
    const locks = crowd(others);
    await inPage({ navigator: { locks } }, async () => {
      const requests = await against([made, sent(event(1)), sent(DONE)], (url) => all(url));
      assert.deepEqual(paths(requests).slice(1), [reading(0) + hold, reading(1) + hold]);
      await until(() => locks.held.length == others + 1);
    });
  }
});

test("where a page may not lock, it streams all the same", async () => {
  const refuse = async () => {
    throw new DOMException("not here", "SecurityError");
  };
  await inPage({ navigator: { locks: { query: refuse, request: refuse } } }, async () => {
    await against([made, sent(event(1), DONE)], async (url) => assert.deepEqual(ids(await all(url)), [1]));
  });
});
