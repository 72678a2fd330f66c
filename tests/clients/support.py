"""What the suites of this folder share: a server for each class, its metrics, and the words used in requests."""

import contextlib
import importlib.metadata
import json
import os
import pathlib
import re
import subprocess
import sys
import time
import unittest
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
NODE = pathlib.Path(__file__).resolve().parent / "node"
sys.path.insert(0, str(ROOT / "scripts"))
from serving import server  # noqa: E402

MODEL = "trunkline-demo"
KEY = "right"
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
BERLIN = "You must call the weather tool for Berlin. Do not answer directly."
SUNNY = {"city": "Berlin", "temperature_c": 21, "condition": "sunny"}
# An answer of this schema goes on for as long as a test may read. A short answer is no sign of how it is streamed:
# what a client has not read yet is sent as one piece.
FLAGS = {"type": "array", "items": {"type": "boolean"}, "minItems": 2000}
# Long enough to fill several KV blocks.
LONG = "You are a helpful assistant. " + "Answer briefly and kindly. " * 20


def user(text):
    return {"role": "user", "content": text}


def package(name):
    """Installed version of a Python package."""
    return importlib.metadata.version(name)


def node_package(name):
    """Installed version of an npm package."""
    return json.loads((NODE / "node_modules" / name / "package.json").read_text())["version"]


def metric(url, name):
    """Value of an unlabelled metric."""
    with urllib.request.urlopen(url + "/metrics", timeout=30) as answer:
        found = re.search(rf"^{name} (\S+)$", answer.read().decode(), re.MULTILINE)
    if not found:
        raise AssertionError(f"the server has no metric {name}")
    return float(found.group(1))


def wait_until(condition, what, timeout=60):
    """Polls until `condition()` is true."""
    deadline = time.monotonic() + timeout
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {timeout} s in vain until {what}")
        time.sleep(0.02)


class Client(unittest.TestCase):
    """One server for all tests of a class; `flags` are its own. `client` names the row of the table."""

    client = None
    flags = ()

    @staticmethod
    def version():
        """Version of the client."""
        raise NotImplementedError

    @classmethod
    def setUpClass(cls):
        cls.url = cls.enterClassContext(server(*cls.flags))

    def metric(self, name):
        return metric(self.url, name)

    @contextlib.contextmanager
    def client_leaves(self):
        """Around requests that the client breaks off: the server has to notice, and to stop computing."""
        before = self.metric("trunkline_client_disconnects_total")
        yield
        wait_until(lambda: self.metric("trunkline_client_disconnects_total") > before, "the server saw the client leave")
        wait_until(lambda: self.metric("trunkline_streams_active") == 0, "no answer is open")
        wait_until(lambda: self.metric("trunkline_requests_running") == 0, "nothing is computed")


class NodeSuite(Client):
    """Tests written in JavaScript: `file` in the folder node. Each `test("...")` there is a test here."""

    file = None

    def __init_subclass__(cls):
        for number, title in enumerate(re.findall(r'^test\("([^"]+)"', (NODE / cls.file).read_text(), re.MULTILINE)):

            def method(self, title=title):
                outcome = self.outcomes.get(title)
                if outcome is None:
                    self.fail(f"{self.file} gave no outcome for this test:\n{self.output}")
                if not outcome["passed"]:
                    self.fail(outcome["error"])

            method.__doc__ = title
            setattr(cls, f"test_{number:02}_" + re.sub(r"\W+", "_", title), method)

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        keyed = cls.enterClassContext(server("--api-key", KEY))
        narrow = cls.enterClassContext(server("--max-running", "1", "--max-waiting", "1"))
        ended = subprocess.run(
            [NODE / "node_modules" / ".bin" / "node", "--test-reporter=./reporter.mjs", cls.file],
            cwd=NODE, capture_output=True, text=True, timeout=300,
            env={**os.environ, "TRUNKLINE_URL": cls.url, "TRUNKLINE_KEYED_URL": keyed, "TRUNKLINE_NARROW_URL": narrow},
        )
        cls.output = ended.stdout + ended.stderr
        lines = [json.loads(line) for line in ended.stdout.splitlines() if line.startswith('{"title":')]
        cls.outcomes = {line["title"]: line for line in lines}
