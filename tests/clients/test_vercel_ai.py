"""The Vercel AI SDK with @ai-sdk/openai-compatible; the tests are node/ai.test.mjs."""

from support import NodeSuite, node_package


class VercelAi(NodeSuite):
    client = "Vercel AI SDK"
    file = "ai.test.mjs"

    @staticmethod
    def version():
        return f"{node_package('ai')} with @ai-sdk/openai-compatible {node_package('@ai-sdk/openai-compatible')}"
