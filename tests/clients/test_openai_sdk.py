"""The official OpenAI SDK, unmodified, against the real binary. Run by .ci/run, or:

    cargo build --release
    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements.txt
    .venv/bin/python -m unittest discover -s tests/clients -v
"""

import asyncio
import json
import pathlib
import sys
import unittest

import openai

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[2] / "scripts"))
from serving import server  # noqa: E402

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Current weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name of the city"}},
            "required": ["city"],
        },
    },
}
# Long enough to fill several KV blocks.
SYSTEM = {"role": "system", "content": "You are a helpful assistant. " + "Answer briefly and kindly. " * 20}


def user(text):
    return {"role": "user", "content": text}


def cached(response):
    return response.usage.prompt_tokens_details.cached_tokens


class Sdk(unittest.TestCase):
    """One server for all tests of a class; `flags` are its own."""

    flags = ()
    api_key = "none"

    @classmethod
    def setUpClass(cls):
        cls.url = cls.enterClassContext(server(*cls.flags))
        cls.client = openai.OpenAI(base_url=cls.url + "/v1", api_key=cls.api_key, max_retries=0)
        cls.addClassCleanup(cls.client.close)
        cls.model = cls.client.models.list().data[0].id

    def chat(self, messages, **options):
        options = {"temperature": 0, "max_tokens": 48, **options}
        return self.client.chat.completions.create(model=self.model, messages=messages, **options)

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
        messages = [SYSTEM, user("You must call the weather tool for Berlin. Do not answer directly.")]
        first = self.chat(messages, tools=[WEATHER])
        self.assertEqual(first.choices[0].finish_reason, "tool_calls")
        self.assertIsNone(first.choices[0].message.content)
        [call] = first.choices[0].message.tool_calls
        self.assertEqual(call.function.name, "weather")
        self.assertEqual(json.loads(call.function.arguments), {"city": "Berlin"})

        messages.append(first.choices[0].message)
        result = json.dumps({"city": "Berlin", "temperature_c": 21, "condition": "sunny"})
        messages.append({"role": "tool", "tool_call_id": call.id, "content": result})
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
        answer = self.client.completions.create(model=self.model, prompt="One, two,", max_tokens=4, temperature=0)
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


class Errors(Sdk):
    flags = ("--context-length", "2048")

    def test_unknown_model(self):
        with self.assertRaises(openai.NotFoundError) as raised:
            self.client.chat.completions.create(model="gpt-unknown", messages=[user("Hi")])
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
    flags = ("--api-key", "right", "--api-key", "second")
    api_key = "second"

    def test_a_right_key_is_let_in(self):
        self.assertTrue(self.chat([user("Hello!")]).choices)

    def test_a_wrong_key_is_not(self):
        with self.assertRaises(openai.AuthenticationError):
            self.client.with_options(api_key="wrong").models.list()


if __name__ == "__main__":
    unittest.main()
