"""Checks what training relies on: the template renders as `chat.py` does, turns are prefixes, tokens round-trip.

    python check.py            # tokenizer and template
    python check.py --model    # also the exported weights against transformers
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import jinja2
import torch
from jinja2.sandbox import ImmutableSandboxedEnvironment

import tokenizer as tokenizer_module
from chat import dumps, render
from conversations import EPISODES, conversation
from model import Model

HERE = Path(__file__).parent


def template() -> jinja2.Template:
    """The chat template, in the environment that transformers gives templates."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    environment.filters["tojson"] = dumps
    return environment.from_string((HERE / "chat_template.jinja").read_text())


def check_template(cases: int = 300) -> None:
    chat = template()
    for seed in range(cases):
        talk = conversation(random.Random(seed), turns=4)
        text = chat.render(messages=talk.messages, tools=talk.tools)
        assert text == render(talk), f"the template renders conversation {seed} otherwise"
        for turn in talk.families:
            prompt = chat.render(messages=talk.messages[:turn], tools=talk.tools, add_generation_prompt=True)
            assert text.startswith(prompt), f"turn {turn} of conversation {seed} is no continuation of its prompt"
    parts = [{"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]}, {"role": "user", "content": "c"}]
    assert chat.render(messages=parts) == "<|im_start|>system\nab<|im_end|>\n<|im_start|>user\nc<|im_end|>\n"


def check_tokenizer(cases: int = 300) -> None:
    tokenizer = tokenizer_module.load()
    for seed in range(cases):
        text = render(conversation(random.Random(seed), turns=4))
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    for literal in ("Quilmora", "src/main.rs", "**/*.toml", "zor_12", "São Paulo", "foo(bar)", "x"):
        alone = tokenizer.encode(literal).ids
        for frame in ("Read {} now", '{{"a": "{}"}}', '{{"a": "{}", "b": 1}}', "Say: {}", "`{}`", "line\n{}\n", "in {}, and", "is {}?"):
            ids = tokenizer.encode(frame.format(literal)).ids
            assert any(ids[i : i + len(alone)] == alone for i in range(len(ids))), f"{literal!r} changes in {frame!r}"


def check_model() -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    theirs, ours = AutoModelForCausalLM.from_pretrained(HERE, dtype=torch.float32), Model.load(HERE)
    tokenizer = AutoTokenizer.from_pretrained(HERE)
    talk = conversation(random.Random(1), turns=4)
    text = tokenizer.apply_chat_template(talk.messages, tools=talk.tools or None, tokenize=False)
    assert text == render(talk), "transformers renders otherwise"
    ids = tokenizer(text, return_tensors="pt").input_ids[:, :700]
    with torch.inference_mode():
        a = theirs(ids).logits
        b = ours.logits(ours(ids, torch.arange(ids.shape[1])[None]))
    error = ((a - b).abs().max() / a.abs().max()).item()
    assert error < 1e-4, f"logits differ by {error}"
    print(f"logits agree with transformers to {error:.1e}; {json.dumps(ours.describe())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(1)
    check_template()
    check_tokenizer()
    if args.model:
        check_model()
    print("all right")


if __name__ == "__main__":
    main()
