"""LangChain's ChatOpenAI."""

import json
import os
import unittest

os.environ["LANGSMITH_TRACING"] = "false"
import openai  # noqa: E402
import pydantic  # noqa: E402
from langchain_core.messages import HumanMessage, SystemMessage, ToolMessage  # noqa: E402
from langchain_core.tools import tool  # noqa: E402
from langchain_openai import ChatOpenAI  # noqa: E402

from support import BERLIN, FLAGS, KEY, LONG, MODEL, Client, package  # noqa: E402


@tool
def weather(city: str) -> str:
    """Current weather of a city"""
    return json.dumps({"city": city, "temperature_c": len(city), "condition": "rainy"})


class Person(pydantic.BaseModel):
    """A person"""

    name: str
    age: int


class LangChain(Client):
    client = "LangChain ChatOpenAI"

    @staticmethod
    def version():
        return package("langchain-openai")

    def model(self, **options):
        options = {"api_key": "none", "model": MODEL, "temperature": 0, "max_tokens": 48, "max_retries": 0, **options}
        return ChatOpenAI(base_url=self.url + "/v1", **options)


class Chat(LangChain):
    def test_invoke_tells_finish_reason_and_usage(self):
        answer = self.model().invoke("What color is the sky?")
        self.assertEqual(answer.content, "The sky is blue.")
        self.assertEqual(answer.response_metadata["finish_reason"], "stop")
        self.assertEqual(answer.response_metadata["model_name"], MODEL)
        usage = answer.usage_metadata
        self.assertEqual(usage["input_tokens"] + usage["output_tokens"], usage["total_tokens"])
        self.assertGreater(usage["output_tokens"], 0)

    def test_streamed_chunks_add_up_to_the_whole_answer(self):
        whole = self.model().invoke("What color is grass?")
        chunks = list(self.model(stream_usage=True).stream("What color is grass?"))
        self.assertGreater(len(chunks), 1)
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        self.assertEqual(total.content, whole.content)
        self.assertEqual(total.response_metadata["finish_reason"], "stop")
        self.assertEqual(total.usage_metadata["output_tokens"], whole.usage_metadata["output_tokens"])

    def test_batch_keeps_the_order(self):
        words = ["lamp", "river", "stone", "cloud"]
        answers = self.model().batch([f"Repeat after me: {word}" for word in words])
        self.assertEqual([answer.content for answer in answers], words)

    def test_bound_tools_are_called_in_a_loop_with_cached_tokens_rising(self):
        model = self.model().bind_tools([weather])
        messages = [SystemMessage(LONG), HumanMessage("What's the weather in Berlin and Paris?")]
        first = model.invoke(messages)
        self.assertEqual(first.response_metadata["finish_reason"], "tool_calls")
        self.assertEqual([(c["name"], c["args"]) for c in first.tool_calls],
                         [("weather", {"city": "Berlin"}), ("weather", {"city": "Paris"})])
        messages.append(first)
        messages += [ToolMessage(weather.invoke(c["args"]), tool_call_id=c["id"]) for c in first.tool_calls]
        second = model.invoke(messages)
        self.assertEqual(second.content,
                         "The weather in Berlin is rainy, 6 degrees. The weather in Paris is rainy, 5 degrees.")
        cached = [a.usage_metadata["input_token_details"]["cache_read"] for a in (first, second)]
        self.assertGreater(cached[1], cached[0])

    def test_streamed_tool_call(self):
        chunks = list(self.model().bind_tools([weather]).stream(BERLIN))
        total = chunks[0]
        for chunk in chunks[1:]:
            total += chunk
        [call] = total.tool_calls
        self.assertEqual((call["name"], call["args"]), ("weather", {"city": "Berlin"}))

    def test_arguments_of_a_tool_call_come_piece_by_piece(self):
        count = {"title": "count", "description": "Counts", "type": "object", "properties": {"flags": FLAGS},
                 "required": ["flags"]}
        model = self.model(max_tokens=20_000).bind_tools([count], tool_choice="any")
        with self.client_leaves():
            stream = model.stream("Count.")
            calls = (call for chunk in stream for call in chunk.tool_call_chunks)
            first, second, third = (next(calls) for _ in range(3))
            self.assertEqual((first["name"], second["name"], third["name"]), ("count", None, None))
            self.assertTrue(second["args"] and third["args"])
            stream.close()

    def test_structured_output_by_json_schema(self):
        model = self.model().with_structured_output(Person, method="json_schema")
        self.assertEqual(model.invoke("Extract the name and age as JSON: Anna is 31 years old."), Person(name="Anna", age=31))

    def test_structured_output_by_a_demanded_tool_call(self):
        # The call that LangChain demands, and what its schema says, leave the model no choice but the values.
        model = self.model().with_structured_output(Person, method="function_calling")
        self.assertEqual(model.invoke("Call Person with name Anna and age 31."), Person(name="Anna", age=31))

    def test_structured_output_in_json_mode(self):
        model = self.model().with_structured_output(Person, method="json_mode")
        self.assertEqual(model.invoke("Extract the name and age as JSON: Anna is 31 years old."), Person(name="Anna", age=31))

    def test_tool_choice_demands_a_call(self):
        answer = self.model().bind_tools([weather], tool_choice="any").invoke("What color is the sky?")
        self.assertEqual([call["name"] for call in answer.tool_calls], ["weather"])

    def test_log_probabilities(self):
        answer = self.model(logprobs=True, top_logprobs=2).invoke("What color is the sky?")
        told = answer.response_metadata["logprobs"]["content"]
        self.assertEqual("".join(token["token"] for token in told), answer.content)

    def test_responses_api(self):
        answer = self.model(use_responses_api=True).bind_tools([weather]).invoke(BERLIN)
        self.assertEqual([(c["name"], c["args"]) for c in answer.tool_calls], [("weather", {"city": "Berlin"})])

    def test_progress_events_do_not_disturb_a_stream(self):
        plain = self.model().invoke("What color is snow?").content
        model = self.model(default_headers={"X-Prefill-Progress": "true"})
        self.assertEqual("".join(chunk.content for chunk in model.stream("What color is snow?")), plain)

    def test_a_closed_stream_ends_the_computation(self):
        with self.client_leaves():
            stream = self.model(max_tokens=20_000, extra_body={"ignore_eos": True}).stream("Hello!")
            next(chunk for chunk in stream if chunk.content)
            stream.close()

    def test_errors_are_those_of_the_openai_package(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            self.model(top_p=2).invoke("Hi")
        self.assertIn("top_p", str(raised.exception))
        with self.assertRaises(openai.NotFoundError):
            self.model(model="gpt-unknown").invoke("Hi")


class Keys(LangChain):
    flags = ("--api-key", KEY)

    def test_a_wrong_key_is_an_authentication_error(self):
        self.assertTrue(self.model(api_key=KEY).invoke("Hello!").content)
        with self.assertRaises(openai.AuthenticationError):
            self.model(api_key="wrong").invoke("Hello!")


if __name__ == "__main__":
    unittest.main()
