"""The Ollama client for Python, by /api."""

import asyncio
import json
import unittest
import urllib.request

import ollama
import pydantic

from support import BERLIN, FLAGS, KEY, LONG, MODEL, Client, package, user, wait_until


class Person(pydantic.BaseModel):
    name: str
    age: int


def weather(city: str) -> str:
    """Current weather of a city

    Args:
        city: Name of the city
    """
    return f"rainy, {len(city)} degrees"


class Ollama(Client):
    client = "Ollama client (Python)"

    @staticmethod
    def version():
        return package("ollama")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        cls.ollama = ollama.Client(host=cls.url)

    def chat(self, messages, **options):
        messages = [user(messages)] if isinstance(messages, str) else messages
        return self.ollama.chat(model=MODEL, messages=messages, **options)


class Api(Ollama):
    def test_chat_with_its_counts(self):
        answer = self.chat("What color is the sky?")
        self.assertEqual((answer.message.role, answer.message.content), ("assistant", "The sky is blue."))
        self.assertEqual((answer.done, answer.done_reason, answer.model), (True, "stop", MODEL))
        self.assertGreater(answer.prompt_eval_count, 0)
        self.assertGreater(answer.eval_count, 0)
        self.assertGreater(answer.total_duration, 0)

    def test_streamed_chat_adds_up_to_the_whole_one(self):
        whole = self.chat("What color is grass?")
        parts = list(self.chat("What color is grass?", stream=True))
        self.assertGreater(len(parts), 1)
        self.assertEqual("".join(part.message.content or "" for part in parts), whole.message.content)
        self.assertEqual([part.done for part in parts], [False] * (len(parts) - 1) + [True])
        self.assertEqual((parts[-1].done_reason, parts[-1].eval_count), ("stop", whole.eval_count))

    def test_tools_are_python_functions(self):
        messages = [user("What's the weather in Berlin and Paris?")]
        first = self.chat(messages, tools=[weather])
        calls = [call.function for call in first.message.tool_calls]
        self.assertEqual([(call.name, call.arguments) for call in calls],
                         [("weather", {"city": "Berlin"}), ("weather", {"city": "Paris"})])
        messages.append(first.message)
        messages += [{"role": "tool", "tool_name": call.name, "content": weather(**call.arguments)} for call in calls]
        second = self.chat(messages, tools=[weather])
        self.assertEqual(second.message.content,
                         "The weather in Berlin is rainy, 6 degrees. The weather in Paris is rainy, 5 degrees.")

    def test_streamed_tool_call(self):
        parts = list(self.chat(BERLIN, tools=[weather], stream=True))
        calls = [call.function for part in parts for call in part.message.tool_calls or []]
        self.assertEqual([(call.name, call.arguments) for call in calls], [("weather", {"city": "Berlin"})])

    def test_format_fills_a_pydantic_model(self):
        answer = self.chat("Extract the name and age as JSON: Anna is 31 years old.", format=Person.model_json_schema())
        self.assertEqual(Person.model_validate_json(answer.message.content), Person(name="Anna", age=31))

    def test_generate_with_options(self):
        answer = self.ollama.generate(
            model=MODEL, prompt="Count from one to ten.", system=LONG, options={"stop": [", four"], "temperature": 0})
        self.assertEqual((answer.response, answer.done_reason), ("one, two, three", "stop"))
        cut = self.ollama.generate(model=MODEL, prompt="Count from one to ten.", options={"num_predict": 5})
        self.assertEqual((cut.done_reason, cut.eval_count), ("length", 5))

    def test_thinking_is_told_apart(self):
        answer = self.chat("What color is the sky?", think=True)
        self.assertTrue(answer.message.thinking)
        self.assertEqual(answer.message.content, "The sky is blue.")

    def test_list_show_and_ps_know_the_model(self):
        self.assertIn(MODEL, [model.model.removesuffix(":latest") for model in self.ollama.list().models])
        shown = self.ollama.show(MODEL)
        self.assertIn("tools", shown.capabilities)
        self.assertIn(MODEL, [model.model.removesuffix(":latest") for model in self.ollama.ps().models])

    def test_errors_are_response_errors_with_their_status(self):
        with self.assertRaises(ollama.ResponseError) as raised:
            self.chat("Hi", options={"top_p": 2})
        self.assertEqual(raised.exception.status_code, 400)
        self.assertIn("top_p", raised.exception.error)
        with self.assertRaises(ollama.ResponseError) as raised:
            self.ollama.chat(model="unknown", messages=[user("Hi")])
        self.assertEqual(raised.exception.status_code, 404)
        self.assertIn(MODEL, raised.exception.error)


class Keys(Ollama):
    flags = ("--api-key", KEY)

    def test_a_key_is_sent_as_a_header(self):
        headers = {"Authorization": f"Bearer {KEY}"}
        self.assertEqual(len(ollama.Client(host=self.url, headers=headers).list().models), 1)
        with self.assertRaises(ollama.ResponseError) as raised:
            self.ollama.list()
        self.assertEqual(raised.exception.status_code, 401)


class Leaving(Ollama):
    flags = ("--max-running", "1")

    def test_a_stream_that_is_left_stops_the_computing(self):
        with self.client_leaves():
            stream = self.chat("Count.", stream=True, format=FLAGS, options={"num_predict": 20_000})
            self.assertIn("[", "".join(next(stream).message.content for _ in range(3)))
            self.assertEqual(self.metric("trunkline_requests_running"), 1)
            stream.close()

    def test_a_cancelled_task_leaves_the_queue(self):
        async def run():
            chat = await ollama.AsyncClient(host=self.url).chat(model=MODEL, messages=[user("Hello!")], stream=True)
            task = asyncio.create_task(anext(chat))
            await asyncio.to_thread(wait_until, lambda: self.metric("trunkline_requests_waiting") == 1, "it waits")
            task.cancel()
            with self.assertRaises(asyncio.CancelledError):
                await task

        endless = {"messages": [user("Hello!")], "stream": True, "max_tokens": 20_000, "ignore_eos": True}
        request = urllib.request.Request(self.url + "/v1/chat/completions", json.dumps(endless).encode())
        with self.client_leaves():
            with urllib.request.urlopen(request, timeout=60):
                wait_until(lambda: self.metric("trunkline_requests_running") == 1, "another request runs")
                before = self.metric("trunkline_client_disconnects_total")
                asyncio.run(run())
                wait_until(lambda: self.metric("trunkline_client_disconnects_total") > before, "the server saw it leave")
                self.assertEqual(self.metric("trunkline_requests_waiting"), 0)


if __name__ == "__main__":
    unittest.main()
