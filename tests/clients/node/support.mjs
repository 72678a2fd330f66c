// What the suites share: the words of the requests, as in support.py, and a look at the server's metrics.
import assert from "node:assert/strict";

export const MODEL = "trunkline-demo";
export const KEY = "right";
export const BERLIN = "You must call the weather tool for Berlin. Do not answer directly.";
export const SUNNY = { city: "Berlin", temperature_c: 21, condition: "sunny" };
// An answer of this schema goes on for as long as a test may read: what a client has not read yet is sent as one piece.
export const FLAGS = { type: "array", items: { type: "boolean" }, minItems: 2000 };
// Long enough to fill several KV blocks.
export const LONG = `You are a helpful assistant. ${"Answer briefly and kindly. ".repeat(20)}`;
export const WEATHER = {
  type: "function",
  function: {
    name: "weather",
    description: "Current weather of a city",
    parameters: {
      type: "object",
      properties: { city: { type: "string", description: "Name of the city" } },
      required: ["city"],
    },
  },
};

/** Value of an unlabelled metric. */
export async function metric(name, url = process.env.TRUNKLINE_URL) {
  const text = await (await fetch(`${url}/metrics`)).text();
  return Number(text.match(new RegExp(`^${name} (\\S+)$`, "m"))[1]);
}

/** Polls until `condition()` is true. */
export async function until(what, condition) {
  const deadline = Date.now() + 60_000;
  while (!(await condition())) {
    assert.ok(Date.now() < deadline, `waited in vain until ${what}`);
    await new Promise((done) => setTimeout(done, 20));
  }
}

/** Runs what breaks off a request: the server has to notice, and to stop computing. */
export async function clientLeaves(run) {
  const before = await metric("trunkline_client_disconnects_total");
  await run();
  await until("the server saw the client leave",
    async () => await metric("trunkline_client_disconnects_total") === before + 1);
  await until("no answer is open", async () => await metric("trunkline_streams_active") === 0);
  await until("nothing is computed", async () => await metric("trunkline_requests_running") === 0);
}
