import assert from "node:assert/strict";
import { test } from "node:test";

import { all, client, HELLO, range, TOKENS, wordsIn } from "./support.mjs";

test("the model list has the upstream's models, and each can be retrieved", async () => {
  const ids = (await all(client.models.list())).map((model) => model.id);
  assert.ok(ids.includes("gpt-4o-mini"), `only ${ids}`);
  const model = await client.models.retrieve("gpt-4o-mini");
  assert.deepEqual([model.id, model.object], ["gpt-4o-mini", "model"]);
});

test("a chat is answered n times", async () => {
  const answer = await client.chat.completions.create({ model: "sim", messages: HELLO, n: 3 });
  assert.deepEqual(answer.choices.map((choice) => choice.index), [0, 1, 2]);
  assert.deepEqual(answer.choices.map((choice) => wordsIn(choice.message.content)), [TOKENS, TOKENS, TOKENS]);
  assert.equal(answer.usage.completion_tokens, TOKENS);
});

test("a chat is streamed token by token, without a usage that nobody asked for", async () => {
  const chunks = await all(client.chat.completions.create({ model: "sim", messages: HELLO, stream: true }));
  assert.equal(chunks[0].choices[0].delta.role, "assistant");
  assert.equal(chunks.filter((chunk) => chunk.choices[0].delta.content).length, TOKENS);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
  assert.ok(chunks.every((chunk) => !chunk.usage));
});

test("a streamed chat ends in its usage if that is asked for", async () => {
  const asked = { model: "sim", messages: HELLO, stream: true, stream_options: { include_usage: true } };
  const chunks = await all(client.chat.completions.create(asked));
  const last = chunks.pop();
  assert.deepEqual(last.choices, []);
  assert.equal(last.usage.completion_tokens, TOKENS);
  assert.ok(chunks.every((chunk) => chunk.choices.length === 1 && !chunk.usage));
});

test("the SDK's own stream helper puts a chat together", async () => {
  const stream = client.chat.completions.stream({ model: "sim", messages: HELLO });
  const answer = await stream.finalChatCompletion();
  assert.equal(wordsIn(answer.choices[0].message.content), TOKENS);
  assert.equal(answer.choices[0].finish_reason, "stop");
});

test("a legacy completion comes whole and streamed", async () => {
  const whole = await client.completions.create({ model: "sim", prompt: "once" });
  assert.equal(wordsIn(whole.choices[0].text), TOKENS);
  assert.equal(whole.usage.completion_tokens, TOKENS);
  const chunks = await all(client.completions.create({ model: "sim", prompt: "once", stream: true }));
  assert.equal(chunks.filter((chunk) => chunk.choices[0].text).length, TOKENS);
  assert.equal(chunks.at(-1).choices[0].finish_reason, "stop");
});

test("embeddings are the same as base64 and as floats", async () => {
  const asked = { model: "sim", input: ["a", "b"], dimensions: 64 };
  const decoded = await client.embeddings.create(asked); // base64 on the wire
  const floats = await client.embeddings.create({ ...asked, encoding_format: "float" });
  assert.deepEqual(decoded.data.map((entry) => entry.embedding.length), [64, 64]);
  assert.deepEqual(
    decoded.data.map((entry) => entry.embedding),
    floats.data.map((entry) => entry.embedding.map(Math.fround)),
  );
  assert.deepEqual(decoded.usage, floats.usage);
});

for (const form of ["base64", "float"]) {
  test(`a long list of inputs is split and joined in order, as ${form}`, async () => {
    const asked = { model: "sim", dimensions: 4, encoding_format: form };
    const input = range(2500).map((n) => `text ${n}`);
    const { data: joined, response } = await client.embeddings.create({ ...asked, input }).withResponse();
    assert.equal(response.headers.get("x-sluicegate-attempts"), "2");
    assert.deepEqual(joined.data.map((entry) => entry.index), range(2500));
    // short enough not to be split: what the whole has to be made of
    const halves = [input.slice(0, 1250), input.slice(1250)];
    const parts = await Promise.all(halves.map((half) => client.embeddings.create({ ...asked, input: half })));
    assert.deepEqual(
      joined.data.map((entry) => entry.embedding),
      parts.flatMap((part) => part.data.map((entry) => entry.embedding)),
    );
    for (const name of ["prompt_tokens", "total_tokens"]) {
      assert.equal(joined.usage[name], parts[0].usage[name] + parts[1].usage[name]);
    }
  });
}

test("a moderation judges every input", async () => {
  const one = await client.moderations.create({ input: "harmless" });
  assert.deepEqual(one.results.map((result) => result.flagged), [false]);
  const two = await client.moderations.create({ input: ["harmless", "as well"], model: "omni-moderation-latest" });
  assert.deepEqual(two.results.map((result) => result.categories.hate), [false, false]);
});
