// The Vercel AI SDK with @ai-sdk/openai-compatible, unmodified, against the real binary. Started by test_vercel_ai.py.
import assert from "node:assert/strict";
import { test } from "node:test";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { APICallError, Output, generateText, isStepCount, jsonSchema, streamText, tool } from "ai";
import { z } from "zod";

import { BERLIN, FLAGS, KEY, LONG, MODEL, clientLeaves } from "./support.mjs";

const connect = (url, options = {}) =>
  createOpenAICompatible({ name: "trunkline", baseURL: `${url}/v1`, apiKey: "none", includeUsage: true, ...options });
const provider = connect(process.env.TRUNKLINE_URL);
const settings = { model: provider(MODEL), temperature: 0, maxOutputTokens: 48, maxRetries: 0 };

const LONG_OBJECT = jsonSchema({ type: "object", properties: { flags: FLAGS }, required: ["flags"] });

/** A weather tool that remembers for which cities it was called. */
function weather() {
  const asked = [];
  return { asked, tools: { weather: tool({
    description: "Current weather of a city",
    inputSchema: z.object({ city: z.string().describe("Name of the city") }),
    execute: async ({ city }) => {
      asked.push(city);
      return { city, temperature_c: city.length, condition: "rainy" };
    },
  }) } };
}

test("generateText tells text, finish reason and usage", async () => {
  const { text, finishReason, usage } = await generateText({ ...settings, prompt: "What color is the sky?" });
  assert.equal(text, "The sky is blue.");
  assert.equal(finishReason, "stop");
  assert.equal(usage.inputTokens + usage.outputTokens, usage.totalTokens);
  assert.ok(usage.outputTokens > 0);
});

test("streamText gives the same text, usage included", async () => {
  const whole = await generateText({ ...settings, prompt: "Count from one to ten." });
  const result = streamText({ ...settings, prompt: "Count from one to ten." });
  const pieces = await Array.fromAsync(result.textStream);
  assert.equal(pieces.join(""), whole.text);
  assert.equal(await result.finishReason, "stop");
  assert.equal((await result.usage).outputTokens, whole.usage.outputTokens);
});

test("an answer cut by maxOutputTokens ends with length", async () => {
  const { finishReason, usage } = await generateText({ ...settings, prompt: "Count from one to ten.", maxOutputTokens: 5 });
  assert.deepEqual([finishReason, usage.outputTokens], ["length", 5]);
});

test("generateText runs tools until there is an answer, from a growing cache", async () => {
  const { asked, tools } = weather();
  const { text, steps } = await generateText({
    ...settings, tools, stopWhen: isStepCount(4), instructions: LONG,
    prompt: "What's the weather in Berlin and Paris?",
  });
  assert.deepEqual(asked, ["Berlin", "Paris"]);
  assert.equal(text, "The weather in Berlin is rainy, 6 degrees. The weather in Paris is rainy, 5 degrees.");
  assert.deepEqual(steps.map((step) => step.finishReason), ["tool-calls", "stop"]);
  const [first, second] = steps.map((step) => step.usage.inputTokenDetails.cacheReadTokens);
  assert.ok(second > first, `${first}, ${second}`);
});

test("streamText streams a tool's input, runs it and streams the answer", async () => {
  const { asked, tools } = weather();
  const result = streamText({ ...settings, tools, stopWhen: isStepCount(4), prompt: BERLIN });
  const parts = await Array.fromAsync(result.fullStream);
  const input = parts.filter((part) => part.type === "tool-input-delta").map((part) => part.delta);
  assert.deepEqual(JSON.parse(input.join("")), { city: "Berlin" });
  assert.deepEqual(asked, ["Berlin"]);
  assert.equal(await result.text, "The weather in Berlin is rainy, 6 degrees.");
});

test("Output.object fills a Zod schema, whole and streamed", async () => {
  const structured = connect(process.env.TRUNKLINE_URL, { supportsStructuredOutputs: true });
  const question = {
    ...settings, model: structured(MODEL), prompt: "Extract the name and age as JSON: Anna is 31 years old.",
    output: Output.object({ schema: z.object({ name: z.string(), age: z.number().int() }) }),
  };
  assert.deepEqual((await generateText(question)).output, { name: "Anna", age: 31 });
  const partial = await Array.fromAsync(streamText(question).partialOutputStream);
  assert.deepEqual(partial.at(-1), { name: "Anna", age: 31 });
});

test("toolChoice demands a call", async () => {
  const { tools } = weather();
  const { toolCalls } = await generateText({ ...settings, tools, toolChoice: "required", prompt: "What color is the sky?" });
  assert.deepEqual(toolCalls.map((call) => call.toolName), ["weather"]);
});

test("progress events do not disturb a stream", async () => {
  const told = connect(process.env.TRUNKLINE_URL, { headers: { "X-Prefill-Progress": "true" } });
  const result = streamText({ ...settings, model: told(MODEL), prompt: "What color is snow?" });
  assert.equal(await result.text, "The snow is white.");
  assert.equal(await result.finishReason, "stop");
});

/** Begins an answer of thousands of tokens, and leaves at the third part of a `type`: the types of all parts that came. */
async function leaveAtThird(type, options) {
  const controller = new AbortController();
  const result = streamText({ ...settings, maxOutputTokens: 20_000, abortSignal: controller.signal, ...options });
  const seen = [];
  for await (const part of result.fullStream) {
    seen.push(part.type);
    if (seen.filter((other) => other === type).length === 3) controller.abort();
  }
  return seen;
}

test("an aborted stream ends the computation", () => clientLeaves(async () => {
  const seen = await leaveAtThird("text-delta", {
    prompt: "Hello!", providerOptions: { trunkline: { ignore_eos: true } },
  });
  assert.equal(seen.at(-1), "abort");
}));

test("a tool's input comes piece by piece", () => clientLeaves(async () => {
  const seen = await leaveAtThird("tool-input-delta", {
    prompt: "Count.", toolChoice: "required", tools: { count: tool({ description: "Counts", inputSchema: LONG_OBJECT }) },
  });
  assert.equal(seen.at(-1), "abort");
}));

test("Output.object grows while it is streamed", () => clientLeaves(async () => {
  const controller = new AbortController();
  const structured = connect(process.env.TRUNKLINE_URL, { supportsStructuredOutputs: true });
  const result = streamText({
    ...settings, model: structured(MODEL), prompt: "Count.", maxOutputTokens: 20_000, abortSignal: controller.signal,
    output: Output.object({ schema: LONG_OBJECT }),
  });
  const lengths = [];
  for await (const { flags = [] } of result.partialOutputStream) {
    if (flags.length > (lengths.at(-1) ?? 0)) lengths.push(flags.length);
    if (lengths.length === 3) controller.abort();
  }
  assert.ok(lengths.length >= 3, `${lengths}`);
}));

test("errors are APICallErrors with status and message", async () => {
  const call = (options) => generateText({ ...settings, prompt: "Hi", ...options });
  const told = (status, words) => (error) => {
    assert.ok(APICallError.isInstance(error));
    assert.equal(error.statusCode, status);
    assert.match(error.message, words);
    return true;
  };
  await assert.rejects(call({ topP: 2 }), told(400, /top_p/));
  await assert.rejects(call({ model: provider("gpt-unknown") }), told(404, new RegExp(MODEL)));
  const url = process.env.TRUNKLINE_KEYED_URL;
  assert.ok((await call({ model: connect(url, { apiKey: KEY })(MODEL) })).text);
  await assert.rejects(call({ model: connect(url, { apiKey: "wrong" })(MODEL) }), told(401, /key/));
});
