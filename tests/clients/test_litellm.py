"""LiteLLM, as an OpenAI-compatible provider (`openai/MODEL`)."""

import asyncio
import json
import os
import unittest

# LiteLLM would otherwise fetch its table of prices when it is imported.
os.environ["LITELLM_LOCAL_MODEL_COST_MAP"] = "True"
import litellm  # noqa: E402
import pydantic  # noqa: E402

from support import BERLIN, KEY, LONG, MODEL, SUNNY, WEATHER, Client, package, user, wait_until  # noqa: E402

litellm.telemetry = False
litellm.suppress_debug_info = True


class Person(pydantic.BaseModel):
    name: str
    age: int


class LiteLlm(Client):
    client = "LiteLLM"

    @staticmethod
    def version():
        return package("litellm")

    def options(self, messages, **options):
        if isinstance(messages, str):
            messages = [user(messages)]
        return {
            "model": f"openai/{MODEL}", "api_base": self.url + "/v1", "api_key": "none", "messages": messages,
            "temperature": 0, "max_tokens": 48, "num_retries": 0, **options,
        }

    def complete(self, messages, **options):
        return litellm.completion(**self.options(messages, **options))


class Completion(LiteLlm):
    def test_streamed_answer_rebuilt_from_its_chunks_equals_the_whole_one(self):
        whole = self.complete("What color is the sky?")
        self.assertEqual(whole.choices[0].message.content, "The sky is blue.")
        self.assertEqual(whole.choices[0].finish_reason, "stop")
        stream = self.complete("What color is the sky?", stream=True, stream_options={"include_usage": True})
        rebuilt = litellm.stream_chunk_builder(list(stream))
        self.assertEqual(rebuilt.choices[0].message.content, whole.choices[0].message.content)
        self.assertEqual(rebuilt.choices[0].finish_reason, "stop")
        self.assertEqual(rebuilt.usage.completion_tokens, whole.usage.completion_tokens)
        self.assertEqual(rebuilt.usage.prompt_tokens, whole.usage.prompt_tokens)

    def test_asynchronous_streams_side_by_side(self):
        async def one(word):
            stream = await litellm.acompletion(**self.options(f"Repeat after me: {word}", stream=True))
            return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

        async def together(words):
            return await asyncio.gather(*map(one, words))

        words = ["lamp", "river", "stone", "cloud"]
        self.assertEqual(asyncio.run(together(words)), words)

    def test_tool_round_trip_with_cached_tokens_rising(self):
        messages = [{"role": "system", "content": LONG}, user(BERLIN)]
        first = self.complete(messages, tools=[WEATHER])
        self.assertEqual(first.choices[0].finish_reason, "tool_calls")
        [call] = first.choices[0].message.tool_calls
        self.assertEqual((call.function.name, json.loads(call.function.arguments)), ("weather", {"city": "Berlin"}))
        messages += [first.choices[0].message, {"role": "tool", "tool_call_id": call.id, "content": json.dumps(SUNNY)}]
        second = self.complete(messages, tools=[WEATHER])
        self.assertEqual(second.choices[0].message.content, "The weather in Berlin is sunny, 21 degrees.")
        cached = [answer.usage.prompt_tokens_details.cached_tokens for answer in (first, second)]
        self.assertGreater(cached[1], cached[0])

    def test_streamed_tool_call(self):
        chunks = list(self.complete("What's the weather in Berlin and Paris?", tools=[WEATHER], stream=True))
        rebuilt = litellm.stream_chunk_builder(chunks)
        cities = [json.loads(call.function.arguments)["city"] for call in rebuilt.choices[0].message.tool_calls]
        self.assertEqual(cities, ["Berlin", "Paris"])
        self.assertEqual(rebuilt.choices[0].finish_reason, "tool_calls")

    def test_response_format_fills_a_pydantic_model(self):
        answer = self.complete("Extract the name and age as JSON: Anna is 31 years old.", response_format=Person)
        self.assertEqual(Person.model_validate_json(answer.choices[0].message.content), Person(name="Anna", age=31))

    def test_tool_choice_demands_a_call(self):
        answer = self.complete("What color is the sky?", tools=[WEATHER], tool_choice="required")
        self.assertEqual([call.function.name for call in answer.choices[0].message.tool_calls], ["weather"])

    def test_progress_events_do_not_disturb_a_stream(self):
        plain = self.complete("What color is grass?").choices[0].message.content
        stream = self.complete("What color is grass?", stream=True, extra_headers={"X-Prefill-Progress": "true"})
        self.assertEqual("".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices), plain)

    def test_messages_api_as_the_anthropic_provider(self):
        answer = litellm.completion(
            model=f"anthropic/{MODEL}", api_base=self.url, api_key="none", messages=[user(BERLIN)], tools=[WEATHER],
            max_tokens=48)
        [call] = answer.choices[0].message.tool_calls
        self.assertEqual(json.loads(call.function.arguments), {"city": "Berlin"})

    def test_ollama_api_as_the_ollama_provider(self):
        answer = litellm.completion(
            model=f"ollama_chat/{MODEL}", api_base=self.url, messages=[user("What color is the sky?")])
        self.assertEqual(answer.choices[0].message.content, "The sky is blue.")

    def test_text_completion(self):
        answer = litellm.text_completion(
            model=f"text-completion-openai/{MODEL}", api_base=self.url + "/v1", api_key="none", temperature=0,
            max_tokens=20, prompt="<|im_start|>user\nWhat color is the sky?<|im_end|>\n<|im_start|>assistant\n")
        self.assertEqual((answer.choices[0].text, answer.choices[0].finish_reason), ("The sky is blue.", "stop"))

    def test_a_closed_stream_ends_the_computation(self):
        with self.client_leaves():
            stream = self.complete("Hello!", stream=True, max_tokens=20_000, extra_body={"ignore_eos": True})
            next(chunk for chunk in stream if chunk.choices[0].delta.content)
            stream.completion_stream.close()

    def test_a_wrong_value_is_a_bad_request_that_names_the_field(self):
        with self.assertRaises(litellm.BadRequestError) as raised:
            self.complete("Hi", temperature=-1)
        self.assertIn("temperature", str(raised.exception))

    def test_a_prompt_too_long_is_known_as_such(self):
        with self.assertRaises(litellm.ContextWindowExceededError):
            self.complete("word " * 40_000)

    def test_an_unknown_model_is_not_found(self):
        with self.assertRaises(litellm.NotFoundError) as raised:
            self.complete("Hi", model="openai/gpt-unknown")
        self.assertIn(MODEL, str(raised.exception))


class Keys(LiteLlm):
    flags = ("--api-key", KEY)

    def test_a_wrong_key_is_an_authentication_error(self):
        self.assertTrue(self.complete("Hello!", api_key=KEY).choices)
        with self.assertRaises(litellm.AuthenticationError):
            self.complete("Hello!", api_key="wrong")


class FullQueue(LiteLlm):
    flags = ("--max-running", "1", "--max-waiting", "1")

    def test_a_full_queue_is_a_rate_limit_error(self):
        streams = []
        for gauge in ("running", "waiting"):
            stream = self.complete("Hello!", stream=True, max_tokens=20_000, extra_body={"ignore_eos": True})
            streams.append(stream)
            wait_until(lambda: self.metric(f"trunkline_requests_{gauge}") == 1, f"a request is {gauge}")
        with self.assertRaises(litellm.RateLimitError):
            self.complete("Hello!")
        for stream in reversed(streams):
            stream.completion_stream.close()
        wait_until(lambda: self.metric("trunkline_streams_active") == 0, "both are gone")
        self.assertEqual(self.complete("Hello!").choices[0].finish_reason, "stop")


if __name__ == "__main__":
    unittest.main()
