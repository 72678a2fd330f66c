"""Turns conversations into training batches of a few fixed shapes."""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass

import torch
from tokenizers import Tokenizer

import corpus
from chat import Conversation, Span, spans
from conversations import WEIGHTS, conversation
from literals import Literals
from tokenizer import pieces
from tools import Tool

CONTEXT = 32768
#: Sequence lengths; every batch holds about TOKENS tokens of one length.
LENGTHS = [128, 256, 512, 1024]


@dataclass
class Sample:
    ids: list[int]
    #: For each token the index of the assistant turn that wrote it, or -1.
    turns: list[int]
    #: Family of each turn.
    families: dict[int, str]
    #: Where spans begin: the places where positions may jump.
    joints: list[int]


@dataclass
class Batch:
    ids: torch.Tensor
    positions: torch.Tensor
    #: Flat indices of the tokens that are predicted from the one before, and which turn each belongs to.
    targets: torch.Tensor
    turns: torch.Tensor
    families: list[str]


def encode(tokenizer: Tokenizer, talk: Conversation) -> Sample:
    return _encode(tokenizer, spans(talk), talk.families)


def _encode(tokenizer: Tokenizer, parts: list[Span], families: dict[int, str]) -> Sample:
    sample = Sample([], [], families, [])
    for part, encoding in zip(parts, tokenizer.encode_batch_fast([p.text for p in parts], add_special_tokens=False)):
        sample.joints.append(len(sample.ids))
        sample.ids += encoding.ids
        sample.turns += [-1 if part.turn is None else part.turn] * len(encoding.ids)
    return sample


def batch_of(samples: list[Sample], length: int, rng: random.Random | None = None, pad: int = 0, start: int = 0) -> Batch:
    """Pads or cuts to `length`. With a generator, positions jump at random joints."""
    ids = torch.full((len(samples), length), pad)
    positions = torch.arange(start, start + length).repeat(len(samples), 1)
    targets: list[int] = []
    turns: list[int] = []
    families: list[str] = []
    for row, sample in enumerate(samples):
        n = min(length, len(sample.ids))
        ids[row, :n] = torch.tensor(sample.ids[:n])
        if rng and rng.random() < 0.4:
            room = CONTEXT - start - length
            for _ in range(rng.randint(1, 3)):
                jump = int(min(room, 2 ** rng.uniform(3, 14)))
                room -= jump
                positions[row, rng.choice(sample.joints) :] += jump
        number: dict[int, int] = {}
        for i in range(1, n):
            turn = sample.turns[i]
            if turn >= 0 and turn in sample.families:
                if turn not in number:
                    number[turn] = len(families)
                    families.append(sample.families[turn])
                targets.append(row * length + i)
                turns.append(number[turn])
    return Batch(ids, positions, torch.tensor(targets), torch.tensor(turns), families)


def behind(talk: Conversation, text: str) -> Conversation:
    """The same conversation with `text` in front of its system prompt."""
    messages = list(talk.messages)
    if messages[0]["role"] == "system":
        messages[0] = {"role": "system", "content": f"{text}\n\n{messages[0]['content']}"}
        return Conversation(messages, talk.tools, talk.families)
    messages.insert(0, {"role": "system", "content": text})
    return Conversation(messages, talk.tools, {turn + 1: family for turn, family in talk.families.items()})


def encode_behind(tokenizer: Tokenizer, talk: Conversation) -> Sample:
    """A conversation behind a long text in its system prompt: the tokens that follow that text."""
    # A marker stands for the text, since tokens split behind it in any case.
    marker = "\x00"
    shifted = behind(talk, marker)
    parts = spans(shifted)
    parts[0].text = parts[0].text.split(marker, 1)[1]
    return _encode(tokenizer, parts, shifted.families)


def encode_tail(tokenizer: Tokenizer, talk: Conversation) -> Sample:
    """A conversation without its system turn, tools included."""
    return encode(tokenizer, Conversation(talk.messages, [], talk.families))


def long_start(rng: random.Random, tokenizer: Tokenizer, documents: list[str], tokens: int, tools: list[Tool] | None) -> list[int]:
    """The first `tokens` tokens of a prompt: unrelated text in the system turn, then the whole rest of that turn if there are tools.

    Empty if the tools alone are longer than that.
    """
    ending: list[int] = []
    if tools is not None:
        text = spans(Conversation(tools=[tool.schema for tool in tools]))[0].text.removeprefix("<|im_start|>system\n")
        ending = tokenizer.encode("\n\n" + text, add_special_tokens=False).ids
    start = tokenizer.encode("<|im_start|>system\n", add_special_tokens=False).ids
    room = tokens - len(start) - len(ending)
    if room < 0:
        return []
    text = corpus.filler(rng, tokenizer, documents, room + room // 8 + 8)
    return start + tokenizer.encode(text, add_special_tokens=False).ids[:room] + ending


def snippets(sentences: list[str]) -> list[str]:
    """Sentences short and plain enough to be a line of a file."""
    return [s for s in sentences if len(s) < 70 and s.isascii() and '"' not in s and "\\" not in s]


class Source:
    """An endless stream of batches; the mix grows richer with the tokens already seen."""

    def __init__(self, tokenizer: Tokenizer, sentences: list[str], seed: int, tokens: int):
        self.tokenizer = tokenizer
        self.sentences = sentences
        self.rng = random.Random(seed)
        self.tokens = tokens
        self.waiting: dict[int, list[Sample]] = defaultdict(list)
        self.weights = dict(WEIGHTS)
        Literals.pieces = pieces(tokenizer)
        Literals.snippets = snippets(sentences)

    def talk(self, seen: int) -> Conversation:
        rng = self.rng
        choice = rng.random()
        if seen < 600_000 or (seen < 2_000_000 and choice < 0.4) or choice < 0.06:
            return conversation(rng, ["repeat"] * rng.randint(4, 12), tool_count=0)
        if seen < 2_000_000:
            return conversation(rng, turns=rng.randint(4, 8), tool_count=rng.choice([0, 0, 1, 2]), weights=self.weights)
        if choice < 0.14:
            return conversation(rng, ["title"], tool_count=rng.choice([0, 0, 0, 3]))
        if choice < 0.21:
            return conversation(rng, turns=rng.choice([1, 1, 2, 3]), thinking=True, weights=self.weights)
        return conversation(rng, turns=rng.randint(2, 10), sentences=self.sentences, weights=self.weights)

    def sample(self, seen: int) -> tuple[Sample, int]:
        while True:
            sample = encode(self.tokenizer, self.talk(seen))
            size = len(sample.ids)
            fitting = [n for n in LENGTHS if n <= size]
            length = fitting[-1] if fitting else LENGTHS[0]
            if fitting and size > length * 1.2 and size <= LENGTHS[-1] and self.rng.random() < 0.5:
                length = min(n for n in LENGTHS if n >= size)
            if any(turn >= 0 for turn in sample.turns[:length]):
                return sample, length

    def batch_behind(self, seen: int, start: int, tools: list[Tool] | None, rows: int, length: int) -> Batch:
        """Short conversations behind a text of `start` tokens, which declares `tools` or leaves that to them."""
        group: list[Sample] = []
        while len(group) < rows:
            if tools is None:
                sample = encode_behind(self.tokenizer, self.talk(seen))
            else:
                sample = encode_tail(self.tokenizer, conversation(self.rng, turns=6, tools=tools, weights=self.weights))
            full = len(sample.ids) >= length * 0.6 or self.rng.random() < 0.3
            if full and any(turn >= 0 for turn in sample.turns[:length]):
                group.append(sample)
        return batch_of(group, length, start=start)

    def batch(self, seen: int) -> Batch:
        while True:
            sample, length = self.sample(seen)
            group = self.waiting[length]
            group.append(sample)
            if len(group) >= self.tokens // length:
                del self.waiting[length]
                return batch_of(group, length, self.rng)
