"""Asks the demo model something, greedily, to see what it says.

    python ask.py "Repeat after me: river stone"
    python ask.py "What's the weather in Berlin?" --tools weather read
    python ask.py "What's the weather in Berlin?" --tools weather --result '{"temperature": 18, "condition": "sunny"}' "Shorter, please."
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import torch

import tokenizer as tokenizer_module
from chat import Conversation, render
from literals import Literals
from model import Model
from tools import known

HERE = Path(__file__).parent


@torch.inference_mode()
def answer(model: Model, tokenizer, talk: Conversation, limit: int = 200) -> str:
    """The text of the next assistant turn."""
    ids = tokenizer.encode(render(talk) + "<|im_start|>assistant\n", add_special_tokens=False).ids
    start = len(ids)
    ends = [tokenizer.token_to_id("<|im_end|>"), tokenizer.token_to_id("<|endoftext|>")]
    while len(ids) - start < limit:
        hidden = model(torch.tensor([ids]), torch.arange(len(ids))[None])
        token = int(model.logits(hidden[:, -1]).argmax())
        if token in ends:
            break
        ids.append(token)
    return tokenizer.decode(ids[start:], skip_special_tokens=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("turns", nargs="+", help="what the user says, turn by turn")
    parser.add_argument("--tools", nargs="*", default=[], help="kinds of tools to declare")
    parser.add_argument("--result", default="ok", help="what every tool call returns")
    parser.add_argument("--system")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--model", type=Path, default=HERE)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = Model.load(args.model).eval(), tokenizer_module.load()
    lit = Literals(random.Random(args.seed))
    talk = Conversation(tools=[known(lit, kind).schema for kind in args.tools])
    if args.system:
        talk.messages.append({"role": "system", "content": args.system})
    for turn in args.turns:
        talk.messages.append({"role": "user", "content": turn})
        print(f"user: {turn}")
        for _ in range(3):
            text = answer(model, tokenizer, talk)
            print(f"assistant: {text}")
            calls = [json.loads(part.split("</tool_call>")[0]) for part in text.split("<tool_call>")[1:]]
            talk.messages.append({"role": "assistant", "content": text if not calls else None, "tool_calls": [{"function": c} for c in calls]})
            talk.messages += [{"role": "tool", "content": args.result} for _ in calls]
            if not calls:
                break
            print(f"tool: {args.result}")


if __name__ == "__main__":
    main()
