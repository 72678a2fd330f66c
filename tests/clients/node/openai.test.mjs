// openai-node, unmodified, against the real binary. Started by test_openai_node.py.
import assert from "node:assert/strict";
import { test } from "node:test";
import OpenAI from "openai";
import { zodFunction, zodResponseFormat } from "openai/helpers/zod";
import { z } from "zod";

import { BERLIN, KEY, LONG, MODEL, SUNNY, WEATHER, clientLeaves, metric, until } from "./support.mjs";

const connect = (url, apiKey = "none") => new OpenAI({ baseURL: `${url}/v1`, apiKey, maxRetries: 0 });
const client = connect(process.env.TRUNKLINE_URL);
const ask = (content, options = {}) => ({
  model: MODEL, messages: [{ role: "user", content }], temperature: 0, max_tokens: 48, ...options,
});
const endless = (options) => ask("Hello!", { max_tokens: 20_000, ignore_eos: true, ...options });

test("a streamed answer equals the whole one, usage included", async () => {
  const whole = await client.chat.completions.create(ask("What color is the sky?"));
  assert.equal(whole.choices[0].message.content, "The sky is blue.");
  let text = "", reason, usage;
  const stream = await client.chat.completions.create(
    ask("What color is the sky?", { stream: true, stream_options: { include_usage: true } }));
  for await (const chunk of stream) {
    usage = chunk.usage ?? usage;
    text += chunk.choices[0]?.delta.content ?? "";
    reason = chunk.choices[0]?.finish_reason ?? reason;
  }
  assert.equal(text, whole.choices[0].message.content);
  assert.equal(reason, "stop");
  assert.equal(usage.completion_tokens, whole.usage.completion_tokens);
  assert.equal(usage.prompt_tokens, whole.usage.prompt_tokens);
});

test("cached tokens rise with a shared prefix", async () => {
  const messages = [{ role: "system", content: LONG }, { role: "user", content: "What color is snow?" }];
  const reused = [];
  for (const next of ["What color is grass?", "Count from one to five."]) {
    const { choices, usage } = await client.chat.completions.create(ask("", { messages }));
    reused.push(usage.prompt_tokens_details.cached_tokens);
    messages.push(choices[0].message, { role: "user", content: next });
  }
  assert.ok(reused[1] > reused[0], `${reused}`);
});

test("the stream helper emits content and the final answer", async () => {
  const runner = client.chat.completions.stream(ask("What color is grass?"));
  let text = "";
  runner.on("content", (delta) => { text += delta; });
  assert.equal(await runner.finalContent(), "The grass is green.");
  assert.equal(text, "The grass is green.");
  assert.equal((await runner.finalChatCompletion()).choices[0].finish_reason, "stop");
});

test("the stream helper accumulates a tool call", async () => {
  const runner = client.chat.completions.stream(ask(BERLIN, { tools: [WEATHER] }));
  let deltas = "";
  runner.on("tool_calls.function.arguments.delta", (event) => { deltas += event.arguments_delta; });
  const [choice] = (await runner.finalChatCompletion()).choices;
  assert.equal(choice.finish_reason, "tool_calls");
  assert.deepEqual(JSON.parse(choice.message.tool_calls[0].function.arguments), { city: "Berlin" });
  assert.equal(deltas, choice.message.tool_calls[0].function.arguments);
});

async function runTool(stream) {
  const asked = [];
  const runner = client.chat.completions.runTools(ask("What's the weather in Berlin?", {
    stream,
    tools: [{ ...WEATHER, function: {
      ...WEATHER.function,
      parse: JSON.parse,
      function: (input) => { asked.push(input); return SUNNY; },
    } }],
  }));
  assert.equal(await runner.finalContent(), "The weather in Berlin is sunny, 21 degrees.");
  assert.deepEqual(asked, [{ city: "Berlin" }]);
  assert.deepEqual(runner.messages.map((message) => message.role), ["user", "assistant", "tool", "assistant"]);
  assert.equal(runner.allChatCompletions().length, 2);
}

test("the tool runner calls the tool and answers from its result", () => runTool(false));

test("the streaming tool runner does the same", () => runTool(true));

test("the tool runner with a Zod tool makes two calls in one turn", async () => {
  const asked = [];
  const runner = client.chat.completions.runTools(ask("What's the weather in Berlin and Paris?", {
    tools: [zodFunction({
      name: "weather", description: "Current weather of a city", parameters: z.object({ city: z.string() }),
      function: ({ city }) => { asked.push(city); return { city, temperature_c: city.length, condition: "rainy" }; },
    })],
  }));
  const text = await runner.finalContent();
  assert.deepEqual(asked, ["Berlin", "Paris"]);
  assert.equal(text, "The weather in Berlin is rainy, 6 degrees. The weather in Paris is rainy, 5 degrees.");
});

test("parse fills a Zod schema", async () => {
  const person = z.object({ name: z.string(), age: z.number().int() });
  const answer = await client.chat.completions.parse(ask("Extract the name and age as JSON: Anna is 31 years old.", {
    response_format: zodResponseFormat(person, "person"),
  }));
  assert.deepEqual(answer.choices[0].message.parsed, { name: "Anna", age: 31 });
});

test("a bad schema is a BadRequestError that names its path", async () => {
  const response_format = { type: "json_schema", json_schema: { name: "a", schema: { type: "objekt" } } };
  await assert.rejects(client.chat.completions.create(ask("Hi", { response_format })), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.match(error.param, /^response_format\.json_schema\.schema/);
    return true;
  });
});

test("tool_choice demands a call", async () => {
  const answer = await client.chat.completions.create(
    ask("What color is the sky?", { tools: [WEATHER], tool_choice: "required" }));
  assert.equal(answer.choices[0].message.tool_calls[0].function.name, "weather");
});

test("several choices are told apart", async () => {
  const answer = await client.chat.completions.create(ask("What color is the sky?", { n: 2 }));
  assert.deepEqual(answer.choices.map(({ index, message }) => [index, message.content]),
    [[0, "The sky is blue."], [1, "The sky is blue."]]);
});

test("the responses stream helper calls a tool and goes on from its result", async () => {
  const tools = [{ type: "function", strict: false, ...WEATHER.function }];
  const first = await client.responses.stream({ model: MODEL, input: BERLIN, tools }).finalResponse();
  const call = first.output.find((item) => item.type === "function_call");
  assert.deepEqual(JSON.parse(call.arguments), { city: "Berlin" });
  const second = await client.responses.create({
    model: MODEL, previous_response_id: first.id, tools,
    input: [{ type: "function_call_output", call_id: call.call_id, output: JSON.stringify(SUNNY) }],
  });
  assert.equal(second.output_text, "The weather in Berlin is sunny, 21 degrees.");
  assert.ok(second.usage.input_tokens_details.cached_tokens > first.usage.input_tokens_details.cached_tokens);
});

test("progress events do not disturb the usual loop or the stream helper", async () => {
  const headers = { "X-Prefill-Progress": "true" };
  let text = "", done = 0;
  const stream = await client.chat.completions.create(ask("What color is snow?", { stream: true }), { headers });
  for await (const chunk of stream) {
    text += chunk.choices[0]?.delta.content ?? "";
    done += chunk.object === "prefill_progress" && chunk.status === "done";
  }
  assert.deepEqual([text, done], ["The snow is white.", 1]);
  const runner = client.chat.completions.stream(ask("What color is snow?"), { headers });
  assert.equal(await runner.finalContent(), text);
});

test("a broken off stream ends the computation", () => clientLeaves(async () => {
  for await (const chunk of await client.chat.completions.create(endless({ stream: true }))) {
    if (chunk.choices[0].delta.content) break;
  }
}));

test("an aborted request ends the computation", () => clientLeaves(async () => {
  const controller = new AbortController();
  const answer = client.chat.completions.create(endless(), { signal: controller.signal });
  const refused = assert.rejects(answer, OpenAI.APIUserAbortError);
  await until("it runs", async () => await metric("trunkline_requests_running") === 1);
  controller.abort();
  await refused;
}));

test("a wrong value is a BadRequestError that names the field", async () => {
  await assert.rejects(client.chat.completions.create(ask("Hi", { temperature: -1 })), (error) => {
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    return true;
  });
});

test("an unknown model is a NotFoundError that names the one served", async () => {
  await assert.rejects(client.chat.completions.create(ask("Hi", { model: "gpt-unknown" })), (error) => {
    assert.ok(error instanceof OpenAI.NotFoundError);
    assert.match(error.message, new RegExp(MODEL));
    return true;
  });
});

test("a wrong key is an AuthenticationError", async () => {
  const url = process.env.TRUNKLINE_KEYED_URL;
  assert.equal((await connect(url, KEY).models.list()).data[0].id, MODEL);
  await assert.rejects(connect(url, "wrong").models.list(), OpenAI.AuthenticationError);
});

test("a full queue is a RateLimitError", async () => {
  const url = process.env.TRUNKLINE_NARROW_URL;
  const narrow = connect(url);
  const running = await narrow.chat.completions.create(endless({ stream: true }));
  await until("the first runs", async () => await metric("trunkline_requests_running", url) === 1);
  const waiting = await narrow.chat.completions.create(endless({ stream: true }));
  await until("the second waits", async () => await metric("trunkline_requests_waiting", url) === 1);
  await assert.rejects(narrow.chat.completions.create(ask("Hello!")), OpenAI.RateLimitError);
  waiting.controller.abort();
  running.controller.abort();
  await until("both are gone", async () => await metric("trunkline_streams_active", url) === 0);
});
