// What the test files share: the client, the simulator's habits, and small helpers.

import OpenAI from "openai";

if (!process.env.BASE_URL) {
  throw new Error("set BASE_URL to a gateway in front of the simulator, for example http://127.0.0.1:8000/v1");
}

export const client = new OpenAI({ baseURL: process.env.BASE_URL, apiKey: "any", maxRetries: 0 });
export const TOKENS = 5;
export const HELLO = [{ role: "user", content: "hello" }];
export const SPEECH_BYTES = 44 + 8000; // a WAV header and a second of silence

export const png = () => OpenAI.toFile(Buffer.from("\x89PNG\r\n\x1a\n and so on", "latin1"), "a.png", { type: "image/png" });
export const wav = () => OpenAI.toFile(Buffer.alloc(100), "a.wav", { type: "audio/wav" });

/** Everything in a stream or a page. */
export async function all(iterable) {
  const found = [];
  for await (const one of await iterable) {
    found.push(one);
  }
  return found;
}

/** The error that a call ends in, during its stream if it has one. */
export async function failure(call) {
  let made;
  try {
    made = await call();
    if (made?.[Symbol.asyncIterator]) {
      await all(made);
    }
  } catch (error) {
    return error;
  }
  throw new Error(`no error but ${JSON.stringify(made)}`);
}

export const wordsIn = (text) => text.trim().split(/\s+/).length;
export const range = (count) => [...Array(count).keys()];
