// Streams that outlive a lost network: nothing is lost, nothing comes twice.
// What is served is this file without indentation and comments, but for the last one (`client_route.py`): 4,096 bytes
// at most. So a comment has lines of its own.

// The fields of each server-sent event, and an empty object after every read: the connection lives.
// https://html.spec.whatwg.org/multipage/server-sent-events.html
/** @param {any} body */
async function* events(body) {
	const reader = body.pipeThrough(new TextDecoderStream()).getReader();
	/** @type {any} */
	let event = {};
	let rest = "";
	for (;;) {
		// a connection that breaks is one that ends: an event that is not whole by then is dropped
		const { value: text } = await reader.read().catch(() => ({}));
		if (!text) return;
		// the line feed of a carriage return at the end may be in the next text
		const lines = (rest + text).split(/\r\n|\n|\r(?!$)/);
		rest = lines.pop() ?? "";
		for (const line of lines) {
			/** @type {any} */
			const [, name, value] = line.match(/^([^:]*):? ?(.*)/s);
			event[name] = name == "data" && name in event ? `${event.data}\n${value}` : value;
			if (line) continue;
			yield event;
			event = {};
		}
		yield {};
	}
}

/**
 * Rejects with an Error (`status`, `type`, `code`) or the signal's reason.
 * @typedef {{id: string, token: string, after?: number}} Started
 * @param {string} url "https://gw.example/v1/chat/completions"
 * @param {any} body
 * @param {{onChunk?: (chunk: any, at: {id: number, event: string}) => any, onStart?: (of: Started) => any,
 * resume?: Started, signal?: AbortSignal, key?: string | (() => Promise<string>)}} options
 */
export async function stream(url, body, { onChunk, onStart, resume, signal, key } = {}) {
	/** @type {any} */
	let at = resume;
	const [host, path] = url.split("/v1/");
	const base = `${host}/v1/streams`;
	/** @type {any} */
	const post = {
		method: "POST",
		body: JSON.stringify({ url: `/v1/${path}`, body }),
		headers: {
			"content-type": "application/json",
			"idempotency-key": crypto.getRandomValues(new Uint32Array(4)).join(),
		},
	};
	const login = async () => (post.headers.authorization = `Bearer ${typeof key == "function" ? await key() : key}`);
	const stop = () => fetch(`${base}/${at.id}?token=${at.token}`, { method: "DELETE", keepalive: true }).catch(() => {});
	/** @param {number} status @param {any} told */
	const failure = (status, told) => Object.assign(Error(`HTTP ${status}`), { status }, told);

	let pace = 1000, tries = 0;
	// One alarm at a time: it ends a pause, or a connection that has been silent for too long. `ring` does so early.
	/** @type {any} */
	let timer, ring = () => {};
	/** @param {any} [action] */
	const alarm = (action = ring, ms = 40_000) => {
		clearTimeout(timer);
		timer = setTimeout((ring = action), ms);
	};
	const hurry = () => {
		tries = -9;
		ring();
	};

	const over = new AbortController();
	const until = { signal: over.signal };
	// a sleeping phone leaves connections behind that never fail: begin anew when somebody looks
	for (const name of ["online", "visibilitychange"])
		globalThis.addEventListener?.(name, () => self.document?.hidden || hurry(), until);
	signal?.addEventListener("abort", () => (at ? (stop(), hurry()) : alarm(ring, 3000)), until);
	// a lock for each stream, in all tabs: a browser has six connections for them, over HTTP/1.1
	const locks = globalThis.navigator?.locks;
	const held = new Promise((release) => (over.signal.onabort = release));
	locks?.request("sluicegate", { mode: "shared", ...until }, () => held).catch(() => {});
	const isCrowded = async () =>
		((await locks?.query().catch(() => null))?.held ?? []).filter(({ name }) => name == "sluicegate").length > 4;

	/** @param {any} reply */
	const read = async (reply) => {
		for await (const { data, id, event, retry } of events(reply.body)) {
			signal?.throwIfAborted();
			alarm();
			tries = -1;
			pace = +retry || pace;
			if (!data || +id <= at.after) continue;
			if (event == "done") return true;
			if (event == "error") throw failure(reply.status, JSON.parse(data).error);
			at.after = +id || at.after;
			await onChunk?.(JSON.parse(data), { id: at.after, event: event || "message" });
		}
	};

	try {
		if (key && !at) await login();
		for (;;) {
			const turn = at && (await isCrowded()) ? "&hold=1" : "";
			signal?.throwIfAborted();
			const link = new AbortController();
			// a POST may have much to send
			alarm(() => link.abort(), at ? 20_000 : 40_000 + post.body.length);
			const reply = await fetch(
				at ? `${base}/${at.id}/events?token=${at.token}&after=${at.after ?? 0}${turn}` : base,
				{ ...(at ? {} : post), signal: link.signal },
			).catch(() => Response.error());
			const { ok, status, headers } = reply;
			if (status == 204 || (ok && at && (await read(reply)))) return;
			if (ok && !at && (at = await reply.json().catch(() => null))) {
				signal?.aborted ? stop() : onStart?.(at);
				continue;
			}
			if (status == 401 && key) {
				await login();
				key = "";
				continue;
			}
			// 0: there was no answer
			const again = /^[025]|408|429|true/.test(headers.get("x-should-retry") ?? `${status}`);
			if (!again || (++tries > 6 && !at))
				throw failure(status, (await reply.json().catch(() => ({}))).error);
			const wait = Number(headers.get("retry-after")) * 1000 || Math.random() * Math.min(pace * 2 ** tries, 10_000);
			await new Promise((go) => alarm(go, wait));
		}
	} finally {
		over.abort();
		clearTimeout(timer);
		ring();
	}
}
