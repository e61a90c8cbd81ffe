import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

import { all, client, failure, range, TOKENS, wordsIn } from "./support.mjs";

const ENDPOINT = "/v1/chat/completions";
const OVER = new Set(["completed", "failed", "expired", "cancelled"]);

const chat = (id, model = "sim") => ({
  custom_id: id,
  method: "POST",
  url: ENDPOINT,
  body: { model, messages: [{ role: "user", content: id }] },
});

async function upload(lines) {
  const text = lines.map((line) => `${typeof line === "string" ? line : JSON.stringify(line)}\n`).join("");
  return client.files.create({ file: await OpenAI.toFile(Buffer.from(text), "lines.jsonl"), purpose: "batch" });
}

async function begin(lines, more = {}) {
  const file = await upload(lines);
  return client.batches.create({ input_file_id: file.id, endpoint: ENDPOINT, completion_window: "24h", ...more });
}

/** The batch at its end: its results are open until then. */
async function end(batch) {
  await client.get(`/batches/${batch.id}/results`);
  const latest = await client.batches.retrieve(batch.id);
  assert.ok(OVER.has(latest.status), latest.status);
  return latest;
}

async function lines(fileId) {
  const text = await (await client.files.content(fileId)).text();
  return text.trimEnd().split("\n").map((line) => JSON.parse(line));
}

test("a file of lines becomes a file of replies", async () => {
  const made = await begin(range(20).map(String).map((id) => chat(id)), { metadata: { from: "node" } });
  assert.deepEqual([made.object, made.status, made.endpoint], ["batch", "validating", ENDPOINT]);
  const batch = await end(made);
  assert.deepEqual(batch.request_counts, { total: 20, completed: 20, failed: 0 });
  assert.deepEqual([batch.status, batch.model, batch.metadata], ["completed", "sim", { from: "node" }]);
  assert.equal(batch.usage.output_tokens, 20 * TOKENS);
  const found = await lines(batch.output_file_id);
  assert.deepEqual(found.map((line) => Number(line.custom_id)).sort((a, b) => a - b), range(20));
  assert.ok(found.every((line) => wordsIn(line.response.body.choices[0].message.content) === TOKENS));
});

test("what fails is in the error file", async () => {
  const batch = await end(await begin([chat("good"), chat("bad", "sim-status=400")]));
  assert.deepEqual(batch.request_counts, { total: 2, completed: 1, failed: 1 });
  const [bad] = await lines(batch.error_file_id);
  assert.deepEqual([bad.custom_id, bad.response.status_code, bad.error], ["bad", 400, null]);
});

test("a bad line fails the batch and is named", async () => {
  const batch = await end(await begin([chat("good"), "bad"]));
  assert.equal(batch.status, "failed");
  assert.deepEqual(batch.errors.data.map(({ code, line }) => [code, line]), [["invalid_json_line", 2]]);
});

test("the list pages by itself, newest first", async () => {
  const file = await upload([chat("a")]);
  const asked = { input_file_id: file.id, endpoint: ENDPOINT, completion_window: "24h" };
  const made = [];
  for (const _ of range(5)) {
    made.unshift((await client.batches.create(asked)).id);
  }
  const ids = (await all(client.batches.list({ limit: 2 }))).map((batch) => batch.id);
  assert.deepEqual(ids.filter((id) => made.includes(id)), made);
});

test("a batch is cancelled, and what has ended is not", async () => {
  const made = await begin(range(20).map(String).map((id) => chat(id, "sim-latency=30")));
  assert.equal((await client.batches.cancel(made.id)).status, "cancelling");
  assert.equal((await end(made)).status, "cancelled");
  const done = await end(await begin([chat("a")]));
  assert.equal((await failure(() => client.batches.cancel(done.id))).status, 409);
});

test("an unknown batch and an unknown file are not found", async () => {
  const batch = await failure(() => client.batches.retrieve("batch_unknown"));
  assert.deepEqual([batch.status, batch.type], [404, "not_found_error"]);
  const asked = { input_file_id: "file-unknown", endpoint: ENDPOINT, completion_window: "24h" };
  const file = await failure(() => client.batches.create(asked));
  assert.deepEqual([file.status, file.param], [404, "input_file_id"]);
});
