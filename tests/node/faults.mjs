// What the Node SDK sees of every case of the fault matrix: cases as JSON on standard input, a JSON line for each out.
// Not a `*.test.mjs`: it needs an upstream of its own (tests/journeys/faults_support.py), and Python judges.

import { text } from "node:stream/consumers";

import { client } from "./support.mjs";

const open = {
  chat: (model) => client.chat.completions.create({ model, messages: [], stream: true }),
  completions: (model) => client.completions.create({ model, prompt: "x", stream: true }),
  responses: (model) => client.responses.create({ model, input: "x", stream: true }),
};
const wordOf = {
  chat: (part) => part.choices[0].delta.content,
  completions: (part) => part.choices[0].text,
  responses: (event) => (event.type === "response.output_text.delta" ? event.delta : ""),
};

async function see({ name, model, endpoint }) {
  const words = [];
  let error = {};
  try {
    for await (const part of await open[endpoint](model)) {
      const word = wordOf[endpoint](part);
      if (word) {
        words.push(word);
        await fetch(`${process.env.SEEN_URL}/${name}`);
      }
    }
  } catch (caught) {
    error = caught;
  }
  const { status = null, type = null, code = null } = error;
  const kind = error.constructor === Object ? "" : error.constructor.name;
  console.log(JSON.stringify({ name, words, kind, status, type, code }));
}

await Promise.all(JSON.parse(await text(process.stdin)).map(see));
