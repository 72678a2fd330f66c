"""openai-python, unmodified, against the real binary. Run by .ci/run, or:

    cargo build --release
    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements.txt
    .venv/bin/python -m unittest discover -s tests/clients -v
"""

import asyncio
import contextlib
import json
import math
import typing
import unittest

import openai
import pydantic

from support import BERLIN, FLAGS, KEY, LONG, SUNNY, WEATHER, Client, package, user, wait_until

SYSTEM = {"role": "system", "content": LONG}


class Weather(pydantic.BaseModel):
    """Current weather of a city"""

    city: str


class Person(pydantic.BaseModel):
    name: str
    age: int


TIME = {"type": "function", "function": {**WEATHER["function"], "name": "time", "description": "Current time in a city"}}


def run_tool(name, arguments):
    """What the tools of the agents answer."""
    return {"weather": SUNNY, "time": {"city": arguments["city"], "time": "14:05"}}[name]


# Questions of a user, and what an agent with both tools says and does.
DIALOGUE = [
    ("What's the weather in Berlin?", [("weather", {"city": "Berlin"})], "The weather in Berlin is sunny, 21 degrees."),
    ("What time is it in Berlin?", [("time", {"city": "Berlin"})], "It is 14:05 in Berlin."),
]


def cached(response):
    return response.usage.prompt_tokens_details.cached_tokens


class Sdk(Client):
    client = "openai-python"
    api_key = "none"

    @staticmethod
    def version():
        return package("openai")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.openai = openai.OpenAI(base_url=cls.url + "/v1", api_key=cls.api_key, max_retries=0)
        cls.addClassCleanup(cls.openai.close)
        cls.model = cls.openai.models.list().data[0].id

    def chat(self, messages, **options):
        options = {"temperature": 0, "max_tokens": 48, **options}
        return self.openai.chat.completions.create(model=self.model, messages=messages, **options)

    def stream_text(self, messages, **options):
        """Text, finish reasons and usage of a streamed answer, by the loop that the SDK's readme shows."""
        text, reasons, usage = "", [], None
        options.setdefault("stream_options", {"include_usage": True})
        for chunk in self.chat(messages, stream=True, **options):
            usage = chunk.usage or usage
            for choice in chunk.choices:
                text += choice.delta.content or ""
                if choice.finish_reason:
                    reasons.append(choice.finish_reason)
        return text, reasons, usage


class Chat(Sdk):
    def test_streamed_answer_equals_the_whole_one(self):
        messages = [user("What color is the sky?")]
        whole = self.chat(messages)
        text, reasons, usage = self.stream_text(messages)
        self.assertEqual(text, whole.choices[0].message.content)
        self.assertEqual(reasons, [whole.choices[0].finish_reason])
        self.assertEqual(usage.completion_tokens, whole.usage.completion_tokens)
        self.assertTrue(text)

    def test_cached_tokens_rise_from_turn_to_turn(self):
        messages, reused = [SYSTEM], []
        for question in ["What color is grass?", "What color is snow?", "Count from one to five."]:
            messages.append(user(question))
            text, _, usage = self.stream_text(messages)
            messages.append({"role": "assistant", "content": text})
            reused.append(usage.prompt_tokens_details.cached_tokens)
        self.assertLess(reused[0], reused[1])
        self.assertLess(reused[1], reused[2])

    def test_a_repeated_request_hits_the_cache(self):
        messages = [SYSTEM, user("What color is a lemon?")]
        self.chat(messages)
        again = self.chat(messages)
        self.assertGreater(cached(again), 0)
        self.assertLess(cached(again), again.usage.prompt_tokens)

    def test_tool_round_trip(self):
        messages = [SYSTEM, user(BERLIN)]
        first = self.chat(messages, tools=[WEATHER])
        self.assertEqual(first.choices[0].finish_reason, "tool_calls")
        self.assertIsNone(first.choices[0].message.content)
        [call] = first.choices[0].message.tool_calls
        self.assertEqual(call.function.name, "weather")
        self.assertEqual(json.loads(call.function.arguments), {"city": "Berlin"})

        messages.append(first.choices[0].message)
        messages.append({"role": "tool", "tool_call_id": call.id, "content": json.dumps(SUNNY)})
        second = self.chat(messages, tools=[WEATHER])
        self.assertEqual(second.choices[0].finish_reason, "stop")
        self.assertIn("21", second.choices[0].message.content)
        self.assertGreater(cached(second), cached(first))

        messages += [second.choices[0].message, user("Say that shorter.")]
        third = self.chat(messages, tools=[WEATHER])
        self.assertEqual(third.choices[0].finish_reason, "stop")
        self.assertGreater(cached(third), cached(second))

    def test_streamed_tool_call(self):
        name, arguments, content, reasons = "", "", "", []
        messages = [user("You must call the weather tool for Paris. Do not answer directly.")]
        for chunk in self.chat(messages, tools=[WEATHER], stream=True):
            for choice in chunk.choices:
                content += choice.delta.content or ""
                for call in choice.delta.tool_calls or []:
                    self.assertEqual(call.index, 0)
                    name += call.function.name or ""
                    arguments += call.function.arguments or ""
                if choice.finish_reason:
                    reasons.append(choice.finish_reason)
        self.assertEqual((name, json.loads(arguments)), ("weather", {"city": "Paris"}))
        self.assertEqual((content, reasons), ("", ["tool_calls"]))

    def test_progress_events_do_not_disturb_the_usual_loop(self):
        messages = [SYSTEM, user("What color is the sea?")]
        plain, _, _ = self.stream_text(messages)
        for value in ["true", "1", "YES", "on"]:
            text, reasons, _ = self.stream_text(messages, extra_headers={"X-Prefill-Progress": value})
            self.assertEqual((text, len(reasons)), (plain, 1))

    def test_progress_events_reach_who_asks(self):
        seen = []
        header = {"X-Prefill-Progress": "true"}
        for chunk in self.chat([SYSTEM, user("Hello!")], stream=True, extra_headers=header):
            if chunk.object == "prefill_progress":
                seen.append(chunk.status)
        self.assertEqual(seen[-1], "done")
        self.assertEqual(seen.count("done"), 1)

    def test_text_completion(self):
        answer = self.openai.completions.create(model=self.model, prompt="One, two,", max_tokens=4, temperature=0)
        self.assertTrue(answer.id.startswith("cmpl-"))
        self.assertGreater(answer.usage.completion_tokens, 0)

    def test_64_concurrent_streams_equal_their_solo_runs(self):
        questions = [
            [SYSTEM, user(f"Repeat after me: {first} {second}")]
            for first in ["lamp", "river", "stone", "cloud", "apple", "horse", "green", "seven"]
            for second in ["table", "window", "garden", "music", "paper", "silver", "monday", "north"]
        ]
        solo = [self.stream_text(messages)[0] for messages in questions]

        async def one(client, messages):
            text = ""
            async for chunk in await client.chat.completions.create(
                    model=self.model, messages=messages, temperature=0, max_tokens=48, stream=True):
                for choice in chunk.choices:
                    text += choice.delta.content or ""
            return text

        async def together():
            async with openai.AsyncOpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0) as client:
                return await asyncio.gather(*(one(client, messages) for messages in questions))

        self.assertEqual(asyncio.run(together()), solo)


class Helpers(Sdk):
    """`client.chat.completions.stream`: typed events and an accumulated answer."""

    def events(self, messages, **options):
        options = {"temperature": 0, "max_tokens": 48, "stream_options": {"include_usage": True}, **options}
        with self.openai.chat.completions.stream(model=self.model, messages=messages, **options) as stream:
            return list(stream), stream.get_final_completion()

    def test_stream_helper_accumulates_the_answer(self):
        messages = [user("What color is the sky?")]
        events, final = self.events(messages)
        deltas = "".join(e.delta for e in events if e.type == "content.delta")
        [done] = [e for e in events if e.type == "content.done"]
        self.assertEqual(deltas, done.content)
        self.assertEqual(final.choices[0].message.content, deltas)
        self.assertEqual(final.choices[0].message.role, "assistant")
        self.assertEqual(final.choices[0].finish_reason, "stop")
        whole = self.chat(messages)
        self.assertEqual(deltas, whole.choices[0].message.content)
        self.assertEqual(final.usage.completion_tokens, whole.usage.completion_tokens)

    def test_stream_helper_parses_a_tool_call(self):
        tool = openai.pydantic_function_tool(Weather, name="weather")
        events, final = self.events([user(BERLIN)], tools=[tool])
        [done] = [e for e in events if e.type == "tool_calls.function.arguments.done"]
        self.assertEqual((done.name, done.parsed_arguments), ("weather", Weather(city="Berlin")))
        deltas = "".join(e.arguments_delta for e in events if e.type == "tool_calls.function.arguments.delta")
        self.assertEqual(json.loads(deltas), {"city": "Berlin"})
        [call] = final.choices[0].message.tool_calls
        self.assertEqual(call.function.parsed_arguments, Weather(city="Berlin"))
        self.assertEqual(final.choices[0].finish_reason, "tool_calls")

    def test_stream_helper_raises_when_the_answer_is_cut(self):
        with self.assertRaises(openai.LengthFinishReasonError):
            tool = openai.pydantic_function_tool(Weather, name="weather")
            self.events([user(BERLIN)], tools=[tool], max_tokens=4)

    def test_stream_helper_with_progress_events(self):
        messages = [SYSTEM, user("What color is a lemon?")]
        _, plain = self.events(messages)
        _, final = self.events(messages, extra_headers={"X-Prefill-Progress": "true"})
        self.assertEqual(final.choices[0].message.content, plain.choices[0].message.content)
        self.assertEqual(final.choices[0].finish_reason, plain.choices[0].finish_reason)

    def test_two_tool_calls_in_one_turn(self):
        messages = [user("What's the weather in Berlin and Paris?")]
        _, final = self.events(messages, tools=[openai.pydantic_function_tool(Weather, name="weather")])
        calls = final.choices[0].message.tool_calls
        self.assertEqual([c.function.parsed_arguments.city for c in calls], ["Berlin", "Paris"])
        self.assertEqual(len({c.id for c in calls}), 2)


class Agent(Sdk):
    def test_agent_loop_with_two_tools(self):
        messages = [SYSTEM]
        for question, expected, answer in DIALOGUE:
            messages.append(user(question))
            done = []
            while (choice := self.chat(messages, tools=[WEATHER, TIME]).choices[0]).finish_reason == "tool_calls":
                messages.append(choice.message)
                for call in choice.message.tool_calls:
                    arguments = json.loads(call.function.arguments)
                    done.append((call.function.name, arguments))
                    result = json.dumps(run_tool(*done[-1]))
                    messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
            messages.append(choice.message)
            self.assertEqual((done, choice.message.content), (expected, answer))


class Structured(Sdk):
    """Output that a schema constrains, and tool calls that are demanded."""

    EXTRACT = "Extract the name and age as JSON: Anna is 31 years old."

    def test_parse_fills_a_pydantic_model(self):
        answer = self.openai.chat.completions.parse(
            model=self.model, messages=[user(self.EXTRACT)], response_format=Person, temperature=0)
        self.assertEqual(answer.choices[0].message.parsed, Person(name="Anna", age=31))
        self.assertEqual(answer.choices[0].finish_reason, "stop")

    def test_stream_helper_parses_the_answer(self):
        with self.openai.chat.completions.stream(
                model=self.model, messages=[user(self.EXTRACT)], response_format=Person, temperature=0) as stream:
            events = list(stream)
        [done] = [e for e in events if e.type == "content.done"]
        self.assertEqual(done.parsed, Person(name="Anna", age=31))
        last = [e.parsed for e in events if e.type == "content.delta"][-1]
        self.assertEqual(last, {"name": "Anna", "age": 31})

    def test_stream_helper_parses_while_the_answer_grows(self):
        class Count(pydantic.BaseModel):
            flags: typing.Annotated[list[bool], pydantic.Field(min_length=FLAGS["minItems"])]

        with self.client_leaves(), self.openai.chat.completions.stream(
                model=self.model, messages=[user("Count.")], response_format=Count, temperature=0,
                max_tokens=20_000) as stream:
            grown = (e.parsed["flags"] for e in stream if e.type == "content.delta" and e.parsed)
            counted = 0
            for _ in range(3):
                counted = next(len(flags) for flags in grown if len(flags) > counted)

    def test_a_schema_holds_against_the_models_own_mind(self):
        class Answer(pydantic.BaseModel):
            colour: typing.Literal["green", "red"]
            sure: bool

        answer = self.openai.chat.completions.parse(
            model=self.model, messages=[user("What color is the sky?")], response_format=Answer, temperature=1, seed=5,
            max_tokens=200)
        self.assertIn(answer.choices[0].message.parsed.colour, ["green", "red"])

    def test_json_object(self):
        answer = self.chat([user(self.EXTRACT)], response_format={"type": "json_object"})
        self.assertEqual(json.loads(answer.choices[0].message.content), {"name": "Anna", "age": 31})

    def test_a_bad_schema_is_a_bad_request_that_names_its_path(self):
        schema = {"type": "object", "properties": {"age": {"type": "number?"}}}
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat([user("Hi")], response_format={"type": "json_schema", "json_schema": {"name": "a", "schema": schema}})
        self.assertIn("response_format.json_schema.schema", raised.exception.param)
        self.assertIn("age", raised.exception.param)

    def test_tool_choice_none_required_and_named(self):
        def outcome(text, choice):
            answer = self.chat([user(text)], tools=[TIME, WEATHER], tool_choice=choice).choices[0]
            return answer.finish_reason, [c.function.name for c in answer.message.tool_calls or []]

        self.assertEqual(outcome("What color is the sky?", "none"), ("stop", []))
        reason, [name] = outcome("What color is the sky?", "required")
        self.assertIn(name, ["time", "weather"])
        named = {"type": "function", "function": {"name": "time"}}
        self.assertEqual(outcome("What's the weather in Berlin?", named)[1], ["time"])

    def test_parallel_tool_calls_can_be_forbidden(self):
        messages = [user("What's the weather in Berlin and Paris?")]
        calls = self.chat(messages, tools=[WEATHER], parallel_tool_calls=False).choices[0].message.tool_calls
        self.assertEqual([json.loads(c.function.arguments) for c in calls], [{"city": "Berlin"}])


class Choices(Sdk):
    def test_several_choices_share_one_prompt(self):
        answer = self.chat([SYSTEM, user("Say three words.")], n=3, temperature=2, seed=1)
        self.assertEqual([choice.index for choice in answer.choices], [0, 1, 2])
        self.assertGreater(len({choice.message.content for choice in answer.choices}), 1)
        alone = self.chat([SYSTEM, user("Say three words.")])
        self.assertEqual(answer.usage.prompt_tokens, alone.usage.prompt_tokens)

    def test_streamed_choices_are_told_apart_by_their_index(self):
        texts = ["", ""]
        for chunk in self.chat([user("What color is the sky?")], n=2, stream=True):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
        self.assertEqual(texts, ["The sky is blue."] * 2)

    def test_log_probabilities_of_the_tokens_and_their_rivals(self):
        choice = self.chat([user("What color is the sky?")], logprobs=True, top_logprobs=3).choices[0]
        told = choice.logprobs.content
        self.assertEqual("".join(token.token for token in told), choice.message.content)
        self.assertEqual(b"".join(bytes(token.bytes) for token in told).decode(), choice.message.content)
        for token in told:
            self.assertEqual(len(token.top_logprobs), 3)
            # Greedy decoding: what was taken is the most probable.
            self.assertEqual((token.token, token.logprob), (token.top_logprobs[0].token, token.top_logprobs[0].logprob))
            self.assertLessEqual(token.logprob, 0)
            self.assertLessEqual(sum(math.exp(rival.logprob) for rival in token.top_logprobs), 1.0001)

    def test_impossible_combinations_are_bad_requests(self):
        for options in [{"n": 0}, {"top_logprobs": 3}, {"logprobs": True, "top_logprobs": 50}]:
            with self.subTest(options), self.assertRaises(openai.BadRequestError) as raised:
                self.chat([user("Hi")], **options)
            self.assertIn(raised.exception.param, options)


FLAT = {"type": "function", **WEATHER["function"], "strict": False}


class Responses(Sdk):
    """/v1/responses."""

    def respond(self, text, **options):
        return self.openai.responses.create(model=self.model, input=text, temperature=0, **options)

    def test_response_with_usage(self):
        answer = self.respond("What color is the sky?", instructions="Answer briefly.")
        self.assertEqual((answer.status, answer.output_text), ("completed", "The sky is blue."))
        self.assertEqual([item.type for item in answer.output], ["message"])
        self.assertEqual(answer.usage.total_tokens, answer.usage.input_tokens + answer.usage.output_tokens)

    def test_response_stream_helper(self):
        with self.openai.responses.stream(model=self.model, input="What color is grass?", temperature=0) as stream:
            events = list(stream)
            final = stream.get_final_response()
        self.assertEqual([e.sequence_number for e in events], list(range(len(events))))
        self.assertEqual((events[0].type, events[-1].type), ("response.created", "response.completed"))
        self.assertEqual("".join(e.delta for e in events if e.type == "response.output_text.delta"), final.output_text)
        self.assertEqual(final.output_text, "The grass is green.")

    def test_response_tool_round_trip_by_previous_response_id(self):
        first = self.respond(BERLIN, tools=[FLAT], instructions=LONG)
        [call] = [item for item in first.output if item.type == "function_call"]
        self.assertEqual((call.name, json.loads(call.arguments)), ("weather", {"city": "Berlin"}))
        result = {"type": "function_call_output", "call_id": call.call_id, "output": json.dumps(SUNNY)}
        second = self.respond([result], tools=[FLAT], instructions=LONG, previous_response_id=first.id)
        self.assertEqual(second.output_text, "The weather in Berlin is sunny, 21 degrees.")
        self.assertGreater(second.usage.input_tokens_details.cached_tokens, first.usage.input_tokens_details.cached_tokens)

    def test_streamed_response_tool_call(self):
        with self.openai.responses.stream(model=self.model, input=BERLIN, tools=[FLAT], temperature=0) as stream:
            events = list(stream)
        deltas = "".join(e.delta for e in events if e.type == "response.function_call_arguments.delta")
        self.assertEqual(json.loads(deltas), {"city": "Berlin"})

    def test_agent_loop_with_two_tools_by_responses(self):
        tools = [FLAT, {**FLAT, "name": "time", "description": "Current time in a city"}]
        previous = None
        for question, expected, text in DIALOGUE:
            items, done = question, []
            while True:
                answer = self.respond(items, tools=tools, previous_response_id=previous)
                previous = answer.id
                calls = [item for item in answer.output if item.type == "function_call"]
                if not calls:
                    break
                done += [(call.name, json.loads(call.arguments)) for call in calls]
                items = [{
                    "type": "function_call_output", "call_id": call.call_id,
                    "output": json.dumps(run_tool(call.name, json.loads(call.arguments))),
                } for call in calls]
            self.assertEqual((done, answer.output_text), (expected, text))

    def test_response_parse_fills_a_pydantic_model(self):
        answer = self.openai.responses.parse(
            model=self.model, input=Structured.EXTRACT, text_format=Person, temperature=0)
        self.assertEqual(answer.output_parsed, Person(name="Anna", age=31))

    def test_responses_are_kept_and_deleted(self):
        kept = self.respond("What color is snow?")
        self.assertEqual(self.openai.responses.retrieve(kept.id).output_text, kept.output_text)
        self.assertEqual(len(self.openai.responses.input_items.list(kept.id).data), 1)
        self.openai.responses.delete(kept.id)
        with self.assertRaises(openai.NotFoundError):
            self.openai.responses.retrieve(kept.id)
        with self.assertRaises(openai.BadRequestError) as raised:
            self.respond("And grass?", previous_response_id=kept.id)
        self.assertEqual(raised.exception.param, "previous_response_id")

    def test_a_response_not_stored_is_not_found(self):
        answer = self.respond("What color is snow?", store=False)
        with self.assertRaises(openai.NotFoundError):
            self.openai.responses.retrieve(answer.id)

    def test_a_cancelled_response_ends_the_computation(self):
        stream = self.respond("Hello!", stream=True, max_output_tokens=20_000, extra_body={"ignore_eos": True})
        created = next(stream).response
        cancelled = self.openai.responses.cancel(created.id)
        self.assertEqual(cancelled.status, "cancelled")
        self.assertIn("response.incomplete", [event.type for event in stream])
        wait_until(lambda: self.metric("trunkline_requests_running") == 0, "nothing is computed")

    def test_a_closed_response_stream_ends_the_computation(self):
        with self.client_leaves():
            stream = self.respond("Hello!", stream=True, max_output_tokens=20_000, extra_body={"ignore_eos": True})
            next(event for event in stream if event.type == "response.output_text.delta")
            stream.close()

    def test_response_stream_helper_with_progress_events(self):
        headers = {"X-Prefill-Progress": "true"}
        stream = self.respond("What color is the sky?", stream=True, extra_headers=headers)
        events = list(stream)
        self.assertEqual(events[-1].response.output_text, "The sky is blue.")


class Async(Sdk):
    @contextlib.asynccontextmanager
    async def connected(self):
        async with openai.AsyncOpenAI(base_url=self.url + "/v1", api_key="none", max_retries=0) as client:
            yield client

    def test_async_stream_helper(self):
        async def run():
            async with self.connected() as client:
                async with client.chat.completions.stream(
                        model=self.model, messages=[user("What color is snow?")], temperature=0) as stream:
                    text = "".join([e.delta async for e in stream if e.type == "content.delta"])
                    return text, await stream.get_final_completion()

        text, final = asyncio.run(run())
        self.assertIn("white", text)
        self.assertEqual(final.choices[0].message.content, text)

    def test_async_tool_call_and_paged_models(self):
        async def run():
            async with self.connected() as client:
                models = [model.id async for model in client.models.list()]
                answer = await client.chat.completions.create(
                    model=models[0], messages=[user(BERLIN)], tools=[WEATHER], temperature=0)
                return models, answer

        models, answer = asyncio.run(run())
        self.assertEqual(models, [self.model])
        [call] = answer.choices[0].message.tool_calls
        self.assertEqual(json.loads(call.function.arguments), {"city": "Berlin"})

    def test_a_cancelled_task_ends_the_computation(self):
        async def run():
            async with self.connected() as client:
                started = asyncio.Event()

                async def read():
                    stream = await client.chat.completions.create(
                        model=self.model, messages=[user("Hello!")], stream=True, max_tokens=20_000,
                        extra_body={"ignore_eos": True})
                    async for _ in stream:
                        started.set()

                task = asyncio.create_task(read())
                await started.wait()
                task.cancel()
                with self.assertRaises(asyncio.CancelledError):
                    await task

        with self.client_leaves():
            asyncio.run(run())


class Leaving(Sdk):
    def endless(self, **options):
        return self.chat([user("Hello!")], max_tokens=20_000, extra_body={"ignore_eos": True}, **options)

    def test_a_closed_stream_ends_the_computation(self):
        with self.client_leaves():
            stream = self.endless(stream=True)
            for chunk in stream:
                if chunk.choices[0].delta.content:
                    break
            self.assertEqual(self.metric("trunkline_streams_active"), 1)
            stream.close()

    def test_a_timeout_of_the_client_ends_the_computation(self):
        with self.client_leaves(), self.assertRaises(openai.APITimeoutError):
            self.endless(timeout=0.5)


class FullQueue(Sdk):
    flags = ("--max-running", "1", "--max-waiting", "1")

    def test_rate_limit(self):
        def endless():
            stream = self.chat([user("Hello!")], max_tokens=20_000, stream=True, extra_body={"ignore_eos": True})
            self.addCleanup(stream.close)
            return stream

        running = endless()
        wait_until(lambda: self.metric("trunkline_requests_running") == 1, "the first request runs")
        waiting = endless()
        wait_until(lambda: self.metric("trunkline_requests_waiting") == 1, "the second waits")
        with self.assertRaises(openai.RateLimitError) as raised:
            self.chat([user("Hello!")])
        self.assertEqual(raised.exception.status_code, 429)
        self.assertGreater(int(raised.exception.response.headers["retry-after"]), 0)
        waiting.close()
        running.close()
        wait_until(lambda: self.metric("trunkline_streams_active") == 0, "both are gone")
        self.assertEqual(self.chat([user("Hello!")]).choices[0].finish_reason, "stop")


class Errors(Sdk):
    flags = ("--context-length", "2048")

    def test_unknown_model(self):
        with self.assertRaises(openai.NotFoundError) as raised:
            self.openai.chat.completions.create(model="gpt-unknown", messages=[user("Hi")])
        self.assertIn(self.model, str(raised.exception))

    def test_wrong_values_name_the_field(self):
        for options in [{"temperature": -1}, {"top_p": 2}, {"max_tokens": 0}, {"temperature": "hot"}]:
            with self.subTest(options), self.assertRaises(openai.BadRequestError) as raised:
                self.chat([user("Hi")], **options)
            self.assertIn(next(iter(options)), raised.exception.body["message"])

    def test_empty_messages(self):
        with self.assertRaises(openai.BadRequestError):
            self.chat([])

    def test_context_length(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            self.chat([user("word " * 4000)])
        self.assertEqual(raised.exception.code, "context_length_exceeded")
        self.assertIn("2048", raised.exception.body["message"])

    def test_body_too_large(self):
        with self.assertRaises(openai.APIStatusError) as raised:
            self.chat([user("x" * 10_000_000)])
        self.assertEqual(raised.exception.status_code, 413)

    def test_the_server_goes_on_serving(self):
        self.assertTrue(self.chat([user("What color is snow?")]).choices[0].message.content)


class Keys(Sdk):
    flags = ("--api-key", KEY, "--api-key", "second")
    api_key = "second"

    def test_a_right_key_is_let_in(self):
        self.assertTrue(self.chat([user("Hello!")]).choices)

    def test_a_wrong_key_is_not(self):
        with self.assertRaises(openai.AuthenticationError) as raised:
            self.openai.with_options(api_key="wrong").models.list()
        self.assertEqual(raised.exception.code, "invalid_api_key")
        self.assertNotIn(KEY, str(raised.exception))


if __name__ == "__main__":
    unittest.main()
