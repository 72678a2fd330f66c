"""Scores the demo model on held-out cases, family by family, also behind long system prompts.

A turn counts as right when greedy decoding gives exactly its text and then stops. That is checked
in one pass: every token of the turn must be the likeliest one after those before it.

    python evaluate.py                           # everything; about ten minutes on one core
    python evaluate.py --cases 20 --fillers 0    # a quick look
"""

from __future__ import annotations

import argparse
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

import torch
from tokenizers import Tokenizer

import corpus
import tokenizer as tokenizer_module
from chat import Conversation, dumps
from conversations import CHAT, EPISODES, conversation
from literals import Literals
from model import Cache, Model
from samples import Batch, Sample, batch_of, encode, encode_behind, encode_tail, long_start, snippets
from tools import CODING_KINDS, toolset

HERE = Path(__file__).parent
ROWS = 8
#: Length of a coding agent's system turn, tools included.
AGENT_PROMPT = 16000

Maker = Callable[[random.Random], Conversation]


def suites() -> dict[str, Maker]:
    """Kinds of held-out conversations. Their turns are scored by family; `whole` ones also as a whole."""

    def one(family: str, **more) -> Maker:
        return lambda rng: conversation(rng, [family], held_out=True, **more)

    found: dict[str, Maker] = {family: one(family) for family in [*EPISODES, "title"]}
    tooled = [family for family, (_, needs) in EPISODES.items() if needs]
    found["12 tools"] = lambda rng: conversation(rng, [rng.choice(tooled)], held_out=True, tool_count=12)
    found["tools not needed"] = lambda rng: conversation(rng, [rng.choice(CHAT)], held_out=True, tool_count=rng.randint(2, 8))
    found["mixed, 5 episodes"] = lambda rng: conversation(rng, turns=5, held_out=True)
    found["think"] = lambda rng: conversation(rng, turns=1, held_out=True, thinking=True)
    return found


@dataclass
class Turn:
    suite: str
    talk: Conversation
    index: int
    family: str
    right: bool

    def __str__(self) -> str:
        message = self.talk.messages[self.index]
        wanted = message["content"] or dumps([call["function"] for call in message["tool_calls"]])
        return f"{self.suite} / {self.family}: {self.talk.messages[self.index - 1]['content'][-160:]!r} -> {wanted!r}"


class Evaluation:
    def __init__(self, folder: Path, work: Path, seed: int):
        self.tokenizer = tokenizer_module.load()
        self.model = Model.load(folder).eval()
        for block in self.model.blocks:
            block.forward_after = torch.compile(block.forward_after, dynamic=True)
        self.documents, self.sentences = corpus.load(work / "corpus.json")
        self.seed = seed
        Literals.snippets = snippets(self.sentences)

    @torch.inference_mode()
    def past(self, rng: random.Random, tokens: int) -> tuple[int, Cache] | None:
        """Keys and values of a long unrelated text at the start of the system prompt, and its length."""
        if not tokens:
            return None
        ids = long_start(rng, self.tokenizer, self.documents, tokens, None)
        with torch.autocast("cpu", torch.bfloat16):
            return len(ids), self.model.remember(ids)

    def coding_agent(self, cases: int, tokens: int) -> tuple[list[Turn], float]:
        """What a coding agent sends: a long system prompt, eleven tools described at length, a request for one of them."""
        rng = random.Random(f"{self.seed}/agent")
        tools = toolset(Literals(rng, held_out=True), [*CODING_KINDS, "other", "other", "other", "search"], 0, self.sentences, length=24)
        ids = long_start(rng, self.tokenizer, self.documents, tokens, tools)
        assert ids, "the tools alone are longer than that"
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
            cache = self.model.remember(ids)
        talks = [conversation(rng, [rng.choice([*CODING_KINDS, "fact", "repeat", "read"])], held_out=True, tools=tools) for _ in range(cases)]
        return self.judge("coding agent", [(talk, encode_tail(self.tokenizer, talk)) for talk in talks], len(ids), cache)

    @torch.inference_mode()
    def right(self, batch: Batch, cache: Cache | None) -> list[bool]:
        """Whether each turn of the batch is exact."""
        with torch.autocast("cpu", torch.bfloat16):
            if cache:
                hidden = self.model.forward_after(batch.ids, batch.positions, cache)
            else:
                hidden = self.model(batch.ids, batch.positions)
            best = self.model.logits(hidden.reshape(-1, hidden.shape[-1])[batch.targets - 1]).argmax(-1)
        wrong = best != batch.ids.reshape(-1)[batch.targets]
        return (torch.zeros(len(batch.families)).index_add_(0, batch.turns, wrong.float()) == 0).tolist()

    def score(self, name: str, make: Maker, cases: int, tokens: int) -> tuple[list[Turn], float]:
        """Every turn of the suite's conversations, and the share of conversations right as a whole."""
        rng = random.Random(f"{self.seed}/{name}/{tokens}")
        start, cache = self.pasts[tokens] or (0, None)
        group: list[tuple[Conversation, Sample]] = []
        for _ in range(cases):
            talk = make(rng)
            group.append((talk, encode_behind(self.tokenizer, talk) if cache else encode(self.tokenizer, talk)))
        return self.judge(name, group, start, cache)

    def judge(self, name: str, group: list[tuple[Conversation, Sample]], start: int, cache: Cache | None) -> tuple[list[Turn], float]:
        group.sort(key=lambda pair: len(pair[1].ids))
        turns: list[Turn] = []
        whole = 0
        for first in range(0, len(group), ROWS):
            rows = group[first : first + ROWS]
            batch = batch_of([sample for _, sample in rows], max(len(sample.ids) for _, sample in rows), start=start)
            right = iter(self.right(batch, cache))
            for talk, _ in rows:
                found = [Turn(name, talk, i, family, next(right)) for i, family in sorted(talk.families.items())]
                whole += all(turn.right for turn in found)
                turns += found
        return turns, whole / len(group)

    def run(self, cases: int, long_cases: int, fillers: list[int], only: list[str]) -> tuple[dict[str, dict[int, float]], list[str]]:
        """The table of scores by family and length of the text in front, and the mistakes."""
        rng = random.Random(self.seed)
        self.pasts = {tokens: self.past(rng, tokens) for tokens in fillers}
        table: dict[str, dict[int, float]] = defaultdict(dict)
        mistakes: list[str] = []
        for tokens in fillers:
            rights: dict[str, list[bool]] = defaultdict(list)
            for name, make in suites().items():
                if only and name not in only:
                    continue
                turns, whole = self.score(name, make, long_cases if tokens else cases, tokens)
                mistakes += [f"{tokens} {turn}" for turn in turns if not turn.right]
                if name not in EPISODES and name != "title":
                    table[f"whole conversation: {name}"][tokens] = whole
                    continue
                for turn in turns:
                    rights[turn.family].append(turn.right)
            if not only and tokens == AGENT_PROMPT:
                turns, table["whole conversation: coding agent, long tool descriptions"][tokens] = self.coding_agent(2 * long_cases, tokens)
                mistakes += [f"{tokens} {turn}" for turn in turns if not turn.right]
            for family, values in rights.items():
                table[family][tokens] = sum(values) / len(values)
        return table, mistakes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=HERE)
    parser.add_argument("--work", type=Path, default=Path("/tmp/trunkline-demo"), help="folder for collected text")
    parser.add_argument("--cases", type=int, default=100, help="conversations per family")
    parser.add_argument("--long-cases", type=int, default=24, help="the same behind a long text")
    parser.add_argument("--fillers", type=int, nargs="+", default=[0, 3000, 8000, 16000], help="tokens of unrelated text in front")
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--mistakes", type=int, default=0, help="how many mistakes to print")
    parser.add_argument("--seed", type=int, default=12345)
    args = parser.parse_args()
    torch.set_num_threads(1)
    begin = time.monotonic()
    table, mistakes = Evaluation(args.model, args.work, args.seed).run(args.cases, args.long_cases, args.fillers, args.only)
    print("| family | " + " | ".join("short" if not f else f"behind {f:,}" for f in args.fillers) + " |")
    print("|---|" + "---:|" * len(args.fillers))
    for family in sorted(table, key=lambda name: (name.startswith("whole"), name)):
        print(f"| {family} | " + " | ".join(f"{table[family][f]:.1%}" if f in table[family] else "" for f in args.fillers) + " |")
    print(f"\n{time.monotonic() - begin:.0f} s")
    for mistake in random.Random(0).sample(mistakes, min(args.mistakes, len(mistakes))):
        print(mistake)


if __name__ == "__main__":
    main()
