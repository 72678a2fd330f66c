"""The README's section "Use it from": each client's snippet is run as it stands there, and prints what stands there."""

import os
import pathlib
import re
import subprocess
import sys
import tempfile
import unittest

import test_anthropic
import test_langchain
import test_litellm
import test_ollama
import test_openai_node
import test_openai_python
import test_opencode
import test_vercel_ai
from support import NODE, ROOT, server

SUITES = {
    suite.client: suite
    for suite in (
        test_anthropic.AnthropicSdk, test_langchain.LangChain, test_litellm.LiteLlm, test_ollama.Ollama,
        test_openai_node.OpenAiNode, test_openai_python.Sdk, test_opencode.OpenCode, test_vercel_ai.VercelAi)
}
BIN = NODE / "node_modules" / ".bin"


def sections():
    """Client to code blocks: each a language (empty for output) and a text."""
    text = (ROOT / "README.md").read_text().split("\n## Use it from\n")[1].split("\n## ")[0]
    for part in text.split("\n### ")[1:]:
        client, body = part.split("\n", 1)
        yield client, re.findall(r"^```(\w*)\n(.*?)^```$", body, re.MULTILINE | re.DOTALL)


class Snippet(unittest.TestCase):
    """Blocks with a language are run, blocks without one are what has to have been printed."""

    def __init__(self, client, blocks):
        super().__init__("run_snippet")
        self.client, self.blocks = client, blocks

    def version(self):
        return SUITES[self.client].version()

    def __str__(self):
        return f"README, {self.client}"

    def shortDescription(self):
        return "the snippet in the README prints what the README says"

    def setUp(self):
        # A server for each, so that counts of cached tokens are those of a fresh one.
        self.server = self.enterContext(server())
        self.folder = pathlib.Path(self.enterContext(tempfile.TemporaryDirectory()))

    def execute(self, language, code):
        if language == "json":
            (self.folder / "opencode.json").write_text(code)
            return ""
        command, folder, environment = {
            "python": ([sys.executable, "-W", "ignore", "-c", code], self.folder, os.environ),
            # Packages are looked for from the folder in which code without a file runs.
            "js": ([BIN / "node", "--input-type=module", "--eval", code], NODE, os.environ),
            "sh": (["sh", "-e", "-c", code], self.folder, test_opencode.environment(self.folder / "home")),
        }[language]
        ended = subprocess.run(
            command, cwd=folder, env={**environment, "PATH": f"{BIN}:{os.environ['PATH']}"}, capture_output=True,
            text=True, timeout=300, stdin=subprocess.DEVNULL)
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        return ended.stdout

    def run_snippet(self):
        printed, compared = "", 0
        for language, text in self.blocks:
            if language:
                self.assertEqual(printed, "", "output that the README does not show")
                printed = self.execute(language, text.replace("http://127.0.0.1:8080", self.server))
            else:
                self.assertEqual(printed.strip(), text.strip())
                printed, compared = "", compared + 1
        self.assertGreater(compared, 0)


class Complete(unittest.TestCase):
    def test_every_client_has_a_snippet(self):
        self.assertEqual(sorted(client for client, _ in sections()), sorted(SUITES))


def load_tests(loader, tests, pattern):
    suite = unittest.TestSuite(Snippet(client, blocks) for client, blocks in sections())
    suite.addTest(Complete("test_every_client_has_a_snippet"))
    return suite


if __name__ == "__main__":
    unittest.main()
