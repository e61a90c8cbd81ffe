// What stands around the pages: where they come from, and a network that can be cut.

import { randomBytes } from "node:crypto";
import { readFile } from "node:fs/promises";
import { createServer } from "node:http";
import { connect, createServer as createTcpServer } from "node:net";

const HTML = await readFile(new URL("page.html", import.meta.url), "utf8");

/** Serves the page, under the strictest policy that it can live with: it may talk to the gateway, and do nothing else. */
export async function servePage(port, gateway) {
  const server = createServer((req, res) => {
    const nonce = randomBytes(16).toString("base64");
    const talksTo = new URL(req.url, "http://page").searchParams.get("talks-to") ?? gateway;
    res.writeHead(200, {
      "content-type": "text/html",
      "content-security-policy": `default-src 'none'; script-src 'nonce-${nonce}' ${gateway}; connect-src ${talksTo}; img-src data:`,
    });
    res.end(HTML.replace("{{nonce}}", nonce).replace("{{gateway}}", gateway));
  });
  await new Promise((go) => server.listen(port, "127.0.0.1", go));
}

/** A way to the gateway, byte for byte. */
export class Network {
  #pairs = new Set();
  #latest = [];
  #down = false;

  async listen(gateway) {
    const { hostname, port } = new URL(gateway);
    const server = createTcpServer((near) => {
      if (this.#down) return near.destroy();
      const far = connect(Number(port), hostname);
      const pair = [near, far];
      this.#pairs.add(pair);
      far.on("data", () => (this.#latest = pair));
      for (const [one, other] of [pair, [far, near]]) {
        one.on("error", () => {});
        one.on("close", () => {
          other.destroy();
          this.#pairs.delete(pair);
        });
        one.pipe(other);
      }
    });
    await new Promise((go) => server.listen(0, "127.0.0.1", go));
    this.origin = `http://127.0.0.1:${server.address().port}`;
    return this;
  }

  /** Breaks what is connected, and refuses what would be until `up`. */
  cut() {
    this.#down = true;
    for (const [near, far] of this.#pairs) {
      near.resetAndDestroy();
      far.destroy();
    }
  }

  up() {
    this.#down = false;
  }

  /** Lets the connection that gave most lately go dead without a word, as a phone's sockets do while it sleeps. */
  freeze() {
    for (const socket of this.#latest) {
      socket.unpipe();
      socket.pause();
    }
  }
}
