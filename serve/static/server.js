// What the page asks of the server. Where keys are needed, the session remembers the key.

const KEY = "bksdm-key";

export class Refusal extends Error {
  constructor(told, status) {
    super(told.detail || "the server did not answer");
    this.status = status;
    this.field = told.field;
  }
}

export function setKey(key) {
  sessionStorage.setItem(KEY, key);
}

async function ask(path, options = {}) {
  const key = sessionStorage.getItem(KEY);
  const headers = { ...options.headers, ...(key ? { authorization: `Bearer ${key}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    throw new Refusal({ detail: "the server cannot be reached" }, 0);
  }
  if (!answer.ok) {
    const told = await answer.json().catch(() => ({}));
    throw new Refusal(told.error?.message ? { detail: told.error.message } : told, answer.status);
  }
  return answer;
}

export async function read(path) {
  return (await ask(path)).json();
}

export async function send(path, body) {
  const headers = { "content-type": "application/json" };
  return (await ask(path, { method: "POST", headers, body: JSON.stringify(body) })).json();
}

export async function cancel(job) {
  await ask(job.links.self, { method: "DELETE" });
}

// Yields [name, data] of every event of a job.
export async function* events(job) {
  const answer = await ask(job.links.events);
  const reader = answer.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts) {
      const lines = Object.fromEntries(part.split("\n").map((line) => line.split(/: (.*)/s, 2)));
      if (lines.event) yield [lines.event, JSON.parse(lines.data)];
    }
  }
}
