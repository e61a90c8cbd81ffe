import assert from "node:assert/strict";
import { test } from "node:test";

import { all, client, png, SPEECH_BYTES, TOKENS, wav, wordsIn } from "./support.mjs";

const isPng = (base64) => Buffer.from(base64, "base64").toString("latin1").startsWith("\x89PNG");

test("images are generated whole, and streamed with partial ones", async () => {
  const whole = await client.images.generate({ model: "gpt-image-1", prompt: "a mill", n: 2 });
  assert.deepEqual(whole.data.map((image) => isPng(image.b64_json)), [true, true]);
  const asked = { model: "gpt-image-1", prompt: "a mill", stream: true, partial_images: 2 };
  const events = await all(client.images.generate(asked));
  assert.deepEqual(
    events.map((event) => event.type),
    ["image_generation.partial_image", "image_generation.partial_image", "image_generation.completed"],
  );
  assert.ok(events.every((event) => isPng(event.b64_json)));
});

test("one image, or several, are edited whole and streamed", async () => {
  for (const image of [await png(), [await png(), await png()]]) {
    const asked = { model: "gpt-image-1", image, prompt: "greener" };
    const whole = await client.images.edit({ ...asked, n: 2 });
    assert.deepEqual(whole.data.map((one) => isPng(one.b64_json)), [true, true]);
    const events = await all(client.images.edit({ ...asked, stream: true }));
    assert.deepEqual(events.map((event) => event.type), ["image_edit.completed"]);
  }
});

test("an image is varied", async () => {
  const varied = await client.images.createVariation({ image: await png(), n: 2 });
  assert.deepEqual(varied.data.map((one) => isPng(one.b64_json)), [true, true]);
});

test("speech comes whole and piece by piece, with every byte", async () => {
  const asked = { model: "tts-1", voice: "alloy", input: "hello", response_format: "wav" };
  const whole = await client.audio.speech.create(asked);
  assert.equal(whole.headers.get("content-type"), "audio/wav");
  const bytes = Buffer.from(await whole.arrayBuffer());
  assert.equal(bytes.length, SPEECH_BYTES);
  assert.equal(bytes.subarray(0, 4).toString(), "RIFF");
  const live = await client.audio.speech.create(asked);
  assert.deepEqual(Buffer.concat(await all(live.body)), bytes);
});

test("speech is transcribed as JSON, as text, and streamed", async () => {
  const asked = { model: "gpt-4o-transcribe", file: await wav() };
  assert.equal(wordsIn((await client.audio.transcriptions.create(asked)).text), TOKENS);
  const text = await client.audio.transcriptions.create({ ...asked, response_format: "text" });
  assert.equal(typeof text, "string");
  assert.equal(wordsIn(text), TOKENS);
  const events = await all(client.audio.transcriptions.create({ ...asked, stream: true }));
  const done = events.pop();
  assert.deepEqual(events.map((event) => event.type), Array(TOKENS).fill("transcript.text.delta"));
  assert.equal(done.type, "transcript.text.done");
  assert.equal(done.text, events.map((event) => event.delta).join(""));
});

test("speech is translated as JSON and as text", async () => {
  const asked = { model: "whisper-1", file: await wav() };
  assert.equal(wordsIn((await client.audio.translations.create(asked)).text), TOKENS);
  const text = await client.audio.translations.create({ ...asked, response_format: "text" });
  assert.equal(typeof text, "string");
  assert.equal(wordsIn(text), TOKENS);
});
