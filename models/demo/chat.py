"""Renders a conversation exactly as chat_template.jinja does, remembering which spans the assistant writes."""

from __future__ import annotations

import json
from dataclasses import dataclass, field

TOOLS_HEAD = "# Tools\n\nYou may call these functions, given as JSON inside <tools></tools>:\n<tools>"
TOOLS_TAIL = (
    "\n</tools>\n\nTo call one, write its name and arguments as JSON inside <tool_call></tool_call>:\n"
    '<tool_call>\n{"name": <name>, "arguments": <object>}\n</tool_call>'
)


@dataclass
class Span:
    """A piece of rendered text; `turn` is the index of the assistant message that wrote it, or None."""

    text: str
    turn: int | None = None


@dataclass
class Conversation:
    messages: list[dict] = field(default_factory=list)
    tools: list[dict] = field(default_factory=list)
    #: Family of each assistant turn, by message index; turns that are not listed are not learned or scored.
    families: dict[int, str] = field(default_factory=dict)


def dumps(value) -> str:
    return json.dumps(value, ensure_ascii=False)


def assistant_text(message: dict, with_reasoning: bool) -> str:
    text = message.get("content") or ""
    if with_reasoning:
        text = f"{message['reasoning_content']}\n</think>\n\n{text}"
    for i, call in enumerate(message.get("tool_calls") or []):
        function = call["function"]
        arguments = function["arguments"]
        if i or (message.get("content") or ""):
            text += "\n"
        text += '<tool_call>\n{"name": "%s", "arguments": %s}\n</tool_call>' % (
            function["name"],
            arguments if isinstance(arguments, str) else dumps(arguments),
        )
    return text


def spans(conversation: Conversation) -> list[Span]:
    """The rendered conversation. A last assistant message that has reasoning is written with its thoughts."""
    messages = conversation.messages
    out: list[Span] = []
    system = messages[0]["content"] if messages and messages[0]["role"] == "system" else None
    if conversation.tools:
        head = "<|im_start|>system\n" + (system + "\n\n" if system else "") + TOOLS_HEAD
        out.append(Span(head + "".join("\n" + dumps(t) for t in conversation.tools) + TOOLS_TAIL + "<|im_end|>\n"))
    elif system is not None:
        out.append(Span(f"<|im_start|>system\n{system}<|im_end|>\n"))
    for i, message in enumerate(messages):
        role = message["role"]
        if role == "system":
            continue
        if role == "user":
            out.append(Span(f"<|im_start|>user\n{message['content']}<|im_end|>\n"))
        elif role == "tool":
            first = messages[i - 1]["role"] != "tool"
            last = i + 1 == len(messages) or messages[i + 1]["role"] != "tool"
            out.append(
                Span(
                    ("<|im_start|>user" if first else "")
                    + f"\n<tool_response>\n{message['content']}\n</tool_response>"
                    + ("<|im_end|>\n" if last else "")
                )
            )
        else:
            thinks = i + 1 == len(messages) and "reasoning_content" in message
            out.append(Span("<|im_start|>assistant\n" + ("<think>\n" if thinks else "")))
            out.append(Span(assistant_text(message, thinks) + "<|im_end|>", turn=i))
            out.append(Span("\n"))
    return out


def render(conversation: Conversation) -> str:
    return "".join(span.text for span in spans(conversation))
