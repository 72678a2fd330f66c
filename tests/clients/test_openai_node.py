"""openai-node, unmodified, against the real binary; the tests are node/openai.test.mjs."""

from support import NodeSuite, node_package


class OpenAiNode(NodeSuite):
    client = "openai-node"
    file = "openai.test.mjs"

    @staticmethod
    def version():
        return node_package("openai")
