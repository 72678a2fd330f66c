"""The Anthropic SDK for Python, by /v1/messages."""

import asyncio
import json
import unittest

import anthropic

from support import BERLIN, KEY, LONG, MODEL, WEATHER, Client, package, user, wait_until

TOOL = {"name": "weather", "description": "Current weather of a city", "input_schema": WEATHER["function"]["parameters"]}


@anthropic.beta_tool
def weather(city: str) -> str:
    """Current weather of a city

    Args:
        city: Name of the city
    """
    return json.dumps({"city": city, "temperature_c": len(city), "condition": "rainy"})


class AnthropicSdk(Client):
    client = "Anthropic SDK (Python)"
    api_key = "none"

    @staticmethod
    def version():
        return package("anthropic")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.anthropic = anthropic.Anthropic(base_url=cls.url, api_key=cls.api_key, max_retries=0)
        cls.addClassCleanup(cls.anthropic.close)

    def options(self, messages, **options):
        messages = [user(messages)] if isinstance(messages, str) else messages
        return {"model": MODEL, "max_tokens": 48, "messages": messages, **options}

    def create(self, messages, **options):
        return self.anthropic.messages.create(**self.options(messages, **options))

    def endless(self):
        return self.options("Hello!", max_tokens=20_000, extra_body={"ignore_eos": True})


class Messages(AnthropicSdk):
    def test_message_with_stop_reason_and_usage(self):
        answer = self.create("What color is the sky?")
        self.assertEqual([(block.type, block.text) for block in answer.content], [("text", "The sky is blue.")])
        self.assertEqual((answer.role, answer.stop_reason, answer.model), ("assistant", "end_turn", MODEL))
        self.assertGreater(answer.usage.input_tokens, 0)
        self.assertGreater(answer.usage.output_tokens, 0)

    def test_stream_helper_accumulates_the_same_message(self):
        whole = self.create("What color is grass?")
        with self.anthropic.messages.stream(**self.options("What color is grass?")) as stream:
            text = "".join(stream.text_stream)
            final = stream.get_final_message()
        self.assertEqual(text, whole.content[0].text)
        self.assertEqual(final.content[0].text, text)
        self.assertEqual((final.stop_reason, final.usage.output_tokens), ("end_turn", whole.usage.output_tokens))

    def test_events_of_a_stream_come_in_their_order(self):
        events = [event.type for event in self.create("What color is snow?", stream=True)]
        self.assertEqual(events[:2], ["message_start", "content_block_start"])
        self.assertEqual(events[-3:], ["content_block_stop", "message_delta", "message_stop"])
        self.assertEqual(set(events[2:-3]), {"content_block_delta"})

    def test_a_cut_answer_and_a_stop_sequence_are_told_apart(self):
        cut = self.create("Count from one to ten.", max_tokens=5)
        self.assertEqual((cut.stop_reason, cut.usage.output_tokens), ("max_tokens", 5))
        stopped = self.create("Count from one to ten.", stop_sequences=[", four"])
        self.assertEqual((stopped.stop_reason, stopped.stop_sequence), ("stop_sequence", ", four"))
        self.assertEqual(stopped.content[0].text, "one, two, three")

    def test_tool_round_trip_with_cache_reads_rising(self):
        messages = [user("What's the weather in Berlin and Paris?")]
        first = self.create(messages, system=LONG, tools=[TOOL])
        self.assertEqual(first.stop_reason, "tool_use")
        calls = [block for block in first.content if block.type == "tool_use"]
        self.assertEqual([(call.name, call.input) for call in calls],
                         [("weather", {"city": "Berlin"}), ("weather", {"city": "Paris"})])
        messages += [
            {"role": "assistant", "content": first.content},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": call.id, "content": weather(**call.input)} for call in calls]},
        ]
        second = self.create(messages, system=LONG, tools=[TOOL])
        self.assertEqual(second.content[0].text,
                         "The weather in Berlin is rainy, 6 degrees. The weather in Paris is rainy, 5 degrees.")
        self.assertGreater(second.usage.cache_read_input_tokens, first.usage.cache_read_input_tokens)

    def test_agent_loop_with_two_tools(self):
        time = {**TOOL, "name": "time", "description": "Current time in a city"}
        answers = {"weather": {"city": "Berlin", "temperature_c": 21, "condition": "sunny"},
                   "time": {"city": "Berlin", "time": "14:05"}}
        messages, done, said = [], [], []
        for question in ["What's the weather in Berlin?", "What time is it in Berlin?"]:
            messages.append(user(question))
            while (answer := self.create(messages, tools=[TOOL, time])).stop_reason == "tool_use":
                calls = [block for block in answer.content if block.type == "tool_use"]
                done += [(call.name, call.input) for call in calls]
                messages += [{"role": "assistant", "content": answer.content}, {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": call.id, "content": json.dumps(answers[call.name])}
                    for call in calls]}]
            messages.append({"role": "assistant", "content": answer.content})
            said.append(answer.content[0].text)
        self.assertEqual(done, [("weather", {"city": "Berlin"}), ("time", {"city": "Berlin"})])
        self.assertEqual(said, ["The weather in Berlin is sunny, 21 degrees.", "It is 14:05 in Berlin."])

    def test_a_named_tool_extracts_what_its_schema_says(self):
        person = {"name": "person", "description": "Takes the name and age of a person", "input_schema": {
            "type": "object", "required": ["name", "age"], "additionalProperties": False,
            "properties": {"name": {"type": "string"}, "age": {"type": "integer"}}}}
        answer = self.create("Call person with name Anna and age 31.", tools=[TOOL, person],
                             tool_choice={"type": "tool", "name": "person"})
        [call] = [block for block in answer.content if block.type == "tool_use"]
        self.assertEqual((call.name, call.input), ("person", {"name": "Anna", "age": 31}))

    def test_streamed_tool_use(self):
        with self.anthropic.messages.stream(**self.options(BERLIN, tools=[TOOL])) as stream:
            deltas = [event.delta.partial_json for event in stream
                      if event.type == "content_block_delta" and event.delta.type == "input_json_delta"]
            final = stream.get_final_message()
        self.assertEqual(json.loads("".join(deltas)), {"city": "Berlin"})
        self.assertEqual((final.stop_reason, final.content[-1].input), ("tool_use", {"city": "Berlin"}))

    def test_tool_runner(self):
        runner = self.anthropic.beta.messages.tool_runner(
            **self.options("What's the weather in Berlin?", tools=[weather]))
        self.assertEqual(runner.until_done().content[0].text, "The weather in Berlin is rainy, 6 degrees.")

    def test_tool_choice_any_and_none(self):
        self.assertEqual(self.create("What color is the sky?", tools=[TOOL], tool_choice={"type": "any"}).stop_reason,
                         "tool_use")
        none = self.create("What's the weather in Berlin?", tools=[TOOL], tool_choice={"type": "none"})
        self.assertEqual({block.type for block in none.content}, {"text"})

    def test_thinking_is_a_block_of_its_own(self):
        options = self.options("What color is the sky?", max_tokens=2048,
                               thinking={"type": "enabled", "budget_tokens": 1024})
        answer = self.anthropic.messages.create(**options)
        self.assertEqual([block.type for block in answer.content], ["thinking", "text"])
        self.assertTrue(answer.content[0].thinking)
        self.assertEqual(answer.content[1].text, "The sky is blue.")

    def test_counted_tokens_are_those_of_the_message(self):
        counted = self.anthropic.messages.count_tokens(
            model=MODEL, system=LONG, messages=[user("Hello!")], tools=[TOOL])
        usage = self.create("Hello!", system=LONG, tools=[TOOL]).usage
        self.assertEqual(counted.input_tokens, usage.input_tokens + usage.cache_read_input_tokens)

    def test_progress_events_do_not_disturb_the_stream_helper(self):
        options = self.options([user("What color is snow?")], system=LONG)
        with self.anthropic.messages.stream(**options, extra_headers={"X-Prefill-Progress": "true"}) as stream:
            self.assertEqual("".join(stream.text_stream), "The snow is white.")

    def test_a_stream_comes_piece_by_piece_and_closed_ends_the_computation(self):
        with self.client_leaves():
            with self.anthropic.messages.stream(**self.endless()) as stream:
                for _ in range(3):
                    next(stream.text_stream)

    def test_asynchronous_streams_side_by_side(self):
        async def one(client, word):
            async with client.messages.stream(**self.options(f"Repeat after me: {word}")) as stream:
                return await stream.get_final_text()

        async def together(words):
            async with anthropic.AsyncAnthropic(base_url=self.url, api_key="none", max_retries=0) as client:
                return await asyncio.gather(*(one(client, word) for word in words))

        words = ["lamp", "river", "stone", "cloud"]
        self.assertEqual(asyncio.run(together(words)), words)

    def test_errors_are_in_its_own_shape(self):
        with self.assertRaises(anthropic.BadRequestError) as raised:
            self.create("Hi", extra_body={"top_p": 2})
        self.assertEqual(raised.exception.body["error"]["type"], "invalid_request_error")
        self.assertIn("top_p", raised.exception.body["error"]["message"])
        with self.assertRaises(anthropic.NotFoundError) as raised:
            self.create("Hi", model="claude-unknown")
        self.assertEqual(raised.exception.body["error"]["type"], "not_found_error")
        self.assertIn(MODEL, raised.exception.body["error"]["message"])


class Keys(AnthropicSdk):
    flags = ("--api-key", KEY)
    api_key = KEY

    def test_a_wrong_key_is_an_authentication_error(self):
        self.assertTrue(self.create("Hello!").content)
        with self.assertRaises(anthropic.AuthenticationError) as raised:
            self.anthropic.with_options(api_key="wrong").messages.create(**self.options("Hello!"))
        self.assertEqual(raised.exception.body["error"]["type"], "authentication_error")


class FullQueue(AnthropicSdk):
    flags = ("--max-running", "1", "--max-waiting", "1")

    def test_a_full_queue_is_a_rate_limit_error(self):
        streams = []
        for gauge in ("running", "waiting"):
            streams.append(self.anthropic.messages.create(**self.endless(), stream=True))
            wait_until(lambda: self.metric(f"trunkline_requests_{gauge}") == 1, f"a request is {gauge}")
        with self.assertRaises(anthropic.RateLimitError) as raised:
            self.create("Hello!")
        self.assertEqual(raised.exception.body["error"]["type"], "rate_limit_error")
        for stream in reversed(streams):
            stream.close()
        wait_until(lambda: self.metric("trunkline_streams_active") == 0, "both are gone")
        self.assertEqual(self.create("Hello!").stop_reason, "end_turn")


if __name__ == "__main__":
    unittest.main()
