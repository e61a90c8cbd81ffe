import assert from "node:assert/strict";
import { test } from "node:test";

import OpenAI from "openai";

import { client, failure, HELLO } from "./support.mjs";

test("an unknown model is a not-found error that names the parameter", async () => {
  const error = await failure(() => client.models.retrieve("no-such-model"));
  assert.ok(error instanceof OpenAI.NotFoundError, String(error));
  assert.deepEqual([error.type, error.code, error.param], ["not_found_error", "model_not_found", "model"]);
});

test("the upstream's own not-found error keeps its code", async () => {
  const error = await failure(() => client.chat.completions.create({ model: "sim-status=404", messages: HELLO }));
  assert.ok(error instanceof OpenAI.NotFoundError, String(error));
  assert.deepEqual([error.type, error.code], ["invalid_request_error", "model_not_found"]);
});

for (const stream of [false, true]) {
  const form = stream ? "streamed" : "whole";

  test(`a request without a model is a bad-request error that names it, ${form}`, async () => {
    const error = await failure(() => client.chat.completions.create({ model: "", messages: HELLO, stream }));
    assert.ok(error instanceof OpenAI.BadRequestError, String(error));
    assert.deepEqual([error.type, error.param], ["invalid_request_error", "model"]);
    assert.ok(error.requestID);
  });

  test(`an upstream that stays at its limit is a rate-limit error after three tries, ${form}`, async () => {
    const model = "sim-status=429-after=0";
    const error = await failure(() => client.chat.completions.create({ model, messages: HELLO, stream }));
    assert.ok(error instanceof OpenAI.RateLimitError, String(error));
    assert.equal(error.code, "rate_limit_exceeded");
    assert.equal(error.headers.get("x-sluicegate-attempts"), "3");
  });
}

test("a spent quota is a rate-limit error at the first try", async () => {
  const error = await failure(() => client.embeddings.create({ model: "sim-quota=1", input: "a" }));
  assert.ok(error instanceof OpenAI.RateLimitError, String(error));
  assert.equal(error.code, "insufficient_quota");
  assert.equal(error.headers.get("x-sluicegate-attempts"), "1");
});

test("a stream that is cut raises in the middle of it", async () => {
  const error = await failure(() => client.chat.completions.create({ model: "sim-cut=2", messages: HELLO, stream: true }));
  assert.ok(error instanceof OpenAI.APIError, String(error));
  assert.ok(!(error instanceof OpenAI.APIConnectionError), String(error));
  assert.equal(error.status, undefined);
  assert.deepEqual([error.type, error.code], ["upstream_error", "upstream_cut"]);
});
