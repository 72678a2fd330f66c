"""OpenCode: whole turns of an agent with its own prompt of some 10,000 tokens and its own tools, without network."""

import json
import os
import pathlib
import subprocess
import tempfile
import unittest

from support import MODEL, NODE, Client, node_package, wait_until

OPENCODE = NODE / "node_modules" / ".bin" / "opencode"
# Nothing listens there: whatever OpenCode wants from the network fails at once.
NOWHERE = "http://127.0.0.1:9"


def configuration(url, options):
    """opencode.json for a server at `url`; `options` go into each request."""
    return {
        "$schema": "https://opencode.ai/config.json",
        "model": f"trunkline/{MODEL}",
        "small_model": f"trunkline/{MODEL}",
        "provider": {"trunkline": {
            "npm": "@ai-sdk/openai-compatible",
            "name": "Trunkline",
            "options": {"baseURL": f"{url}/v1", "apiKey": "none"},
            "models": {MODEL: {"limit": {"context": 32768, "output": 4096}, "options": options}},
        }},
        "autoupdate": False,
        "share": "disabled",
    }


def environment(home):
    """Isolated from the user's own OpenCode, and from the network."""
    return {
        "PATH": os.environ["PATH"],
        "HOME": str(home),
        "XDG_CONFIG_HOME": str(home / "config"),
        "XDG_DATA_HOME": str(home / "data"),
        "XDG_CACHE_HOME": str(home / "cache"),
        "XDG_STATE_HOME": str(home / "state"),
        "OPENCODE_DISABLE_AUTOUPDATE": "1",
        "OPENCODE_DISABLE_MODELS_FETCH": "1",
        "OPENCODE_DISABLE_LSP_DOWNLOAD": "1",
        "OPENCODE_DISABLE_DEFAULT_PLUGINS": "1",
        "HTTP_PROXY": NOWHERE, "HTTPS_PROXY": NOWHERE, "http_proxy": NOWHERE, "https_proxy": NOWHERE,
        "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
    }


class OpenCode(Client):
    client = "OpenCode"
    options = {}

    @staticmethod
    def version():
        return node_package("opencode-ai")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        folder = pathlib.Path(cls.enterClassContext(tempfile.TemporaryDirectory()))
        cls.home, cls.work = folder / "home", folder / "work"
        cls.home.mkdir()
        cls.work.mkdir()
        (cls.work / "opencode.json").write_text(json.dumps(configuration(cls.url, cls.options)))
        (cls.work / "notes.txt").write_text("The secret word is lantern.\n")

    def start(self, *words):
        return subprocess.Popen(
            [OPENCODE, *words], cwd=self.work, env=environment(self.home), text=True,
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE)

    def opencode(self, *words):
        with self.start(*words) as process:
            try:
                out, errors = process.communicate(timeout=300)
            finally:
                process.kill()
        self.assertEqual(process.returncode, 0, out + errors)
        return out

    def ask(self, *words):
        """What happened in a turn, as OpenCode tells it: its events by type."""
        events = [json.loads(line) for line in self.opencode("run", "--format", "json", *words).splitlines()]
        self.assertNotIn("error", [event["type"] for event in events], events)
        parts = {"tool_use": [], "text": [], "step_finish": []}
        for event in events:
            parts.setdefault(event["type"], []).append(event["part"])
        return parts


class Turn(OpenCode):
    def test_it_reads_a_file_with_its_own_tool_and_answers_from_what_it_says(self):
        turn = self.ask("Read the file notes.txt and tell me what it says.")
        [call] = turn["tool_use"]
        self.assertEqual((call["tool"], call["state"]["status"]), ("read", "completed"))
        self.assertEqual(call["state"]["input"], {"filePath": "notes.txt"})
        self.assertIn("The secret word is lantern.", call["state"]["output"])
        self.assertEqual([part["text"] for part in turn["text"]], ["notes.txt says: The secret word is lantern."])

        first, second = turn["step_finish"]
        self.assertEqual((first["reason"], second["reason"]), ("tool-calls", "stop"))
        prompt = first["tokens"]["input"] + first["tokens"]["cache"]["read"]
        self.assertGreater(prompt, 5_000)
        # The second request repeats the first one: only the call and its result are new.
        self.assertGreater(second["tokens"]["cache"]["read"], 0.98 * prompt)
        self.assertLess(second["tokens"]["input"], 300)

        # The model was asked for a title, too.
        sessions = json.loads(self.opencode("session", "list", "--format", "json"))
        self.assertIn("Reading notes.txt", [session["title"] for session in sessions])

        turn = self.ask("--continue", "What is the secret word?")
        self.assertEqual([part["text"] for part in turn["text"]], ["The secret word is lantern."])
        [only] = turn["step_finish"]
        self.assertGreater(only["tokens"]["cache"]["read"], 0.98 * prompt)

    def test_it_edits_a_file(self):
        colours = self.work / "colours.txt"
        colours.write_text("The kettle is yellow.\n")
        # As words of their own: OpenCode puts quotes around an argument with blanks.
        turn = self.ask(*'Replace "yellow" with "purple" in colours.txt.'.split())
        [call] = turn["tool_use"]
        self.assertEqual((call["tool"], call["state"]["status"]), ("edit", "completed"), call)
        self.assertEqual(colours.read_text(), "The kettle is purple.\n")
        self.assertEqual([part["reason"] for part in turn["step_finish"]], ["tool-calls", "stop"])
        self.assertTrue(turn["text"][0]["text"].startswith("I edited "), turn["text"])


class Killed(OpenCode):
    options = {"ignore_eos": True}

    def test_the_server_notices_when_it_is_killed(self):
        with self.client_leaves(), self.start("run", "Hello!") as process:
            wait_until(lambda: self.metric("trunkline_requests_running") > 0, "it asks")
            process.kill()
            process.communicate()


if __name__ == "__main__":
    unittest.main()
