import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

import { all, client, failure, range, TOKENS, wordsIn } from "./support.mjs";

test("a response is created, retrieved, cancelled and deleted", async () => {
  const made = await client.responses.create({ model: "sim", input: "its whole life in node", background: true });
  assert.equal(made.status, "completed");
  assert.equal(wordsIn(made.output_text), TOKENS);
  const again = await client.responses.retrieve(made.id);
  assert.deepEqual([again.id, again.output_text], [made.id, made.output_text]);
  const items = await all(client.responses.inputItems.list(made.id));
  assert.deepEqual(items.map((item) => item.content[0].text), ["its whole life in node"]);
  assert.equal((await client.responses.cancel(made.id)).status, "cancelled");
  await client.responses.delete(made.id);
  assert.ok((await failure(() => client.responses.retrieve(made.id))) instanceof OpenAI.NotFoundError);
});

test("a response is streamed, and streamed again from the store", async () => {
  const events = await all(client.responses.create({ model: "sim", input: "in pieces in node", stream: true }));
  assert.deepEqual([events[0].type, events.at(-1).type], ["response.created", "response.completed"]);
  assert.deepEqual(events.map((event) => event.sequence_number), range(events.length));
  const pieces = events.filter((event) => event.type === "response.output_text.delta").map((event) => event.delta);
  assert.equal(pieces.length, TOKENS);
  const final = events.at(-1).response;
  assert.equal(final.output[0].content[0].text, pieces.join(""));
  const stored = await all(client.responses.retrieve(final.id, { stream: true }));
  assert.equal(stored.at(-1).type, "response.completed");
  assert.deepEqual(stored.at(-1).response, final);
});

test("the SDK's own stream helper puts a response together", async () => {
  const stream = client.responses.stream({ model: "sim", input: "put together" });
  const final = await stream.finalResponse();
  assert.equal(final.status, "completed");
  assert.equal(wordsIn(final.output_text), TOKENS);
});
