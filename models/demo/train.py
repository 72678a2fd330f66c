"""Trains the demo model on one CPU core, for a given time.

    python train.py --minutes 100 --run /tmp/trunkline-demo/run
    python train.py --minutes 30 --run /tmp/trunkline-demo/run --start --averaged --lr 0.005 --embed-lr 0.001 --decay 1
                                             # go on from there, on a new schedule
    python train.py --minutes 60 --weights . --seen 29500000 --lr 0.005 --embed-lr 0.001 --decay 1
                                             # go on from the committed weights
"""

from __future__ import annotations

import argparse
import copy
import random
import time
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F

import corpus
import tokenizer as tokenizer_module
from conversations import WEIGHTS
from literals import Literals
from model import Cache, Model, Shape
from optimizer import Muon
from samples import Batch, Source, long_start
from tools import KINDS, Tool, agent, toolset

#: Tokens in a step.
TOKENS = 4096
#: Steps over which the exported weights are averaged.
EMA_STEPS = 150
#: Lengths of the texts in front, with weights; few, as each is compiled for.
PASTS = [(1024, 3), (3072, 4), (8192, 2)]
PAST_USES = 6
#: Tokens seen before long texts come.
LONG_FROM = 5_000_000


def turn_scores(correct: torch.Tensor, batch: Batch) -> dict[str, list[float]]:
    """Per family, which turns were predicted without a single mistake."""
    wrong = torch.zeros(len(batch.families)).index_add_(0, batch.turns, (~correct).float())
    scores: dict[str, list[float]] = defaultdict(list)
    for family, mistakes in zip(batch.families, wrong.tolist()):
        scores[family].append(float(mistakes == 0))
    return scores


@dataclass
class Past:
    """A long text in front of several batches: its keys and values, and how often it may still be used."""

    tokens: int
    tools: list[Tool] | None
    cache: Cache
    uses: int


class Trainer:
    def __init__(self, args: argparse.Namespace):
        torch.manual_seed(args.seed)
        self.args = args
        self.tokenizer = tokenizer_module.load()
        self.documents, sentences = corpus.load(args.work / "corpus.json")
        self.source = Source(self.tokenizer, sentences, args.seed, TOKENS)
        self.model = Model.load(args.weights) if args.weights else Model(Shape(vocab=self.tokenizer.get_vocab_size()))
        self.ema = copy.deepcopy(self.model)
        matrices = [p for p in self.model.blocks.parameters() if p.ndim == 2]
        others = [p for p in self.model.parameters() if p.ndim == 1]
        self.muon = Muon(matrices, args.lr)
        self.adam = torch.optim.AdamW(
            [{"params": [self.model.embed.weight], "lr": args.embed_lr}, {"params": others, "lr": args.embed_lr}],
            betas=(0.9, 0.98), weight_decay=0.0, fused=True,
        )
        for group in self.muon.param_groups + self.adam.param_groups:
            group["peak"] = group["lr"]
        self.past: Past | None = None
        self.step = 0
        self.seen = args.seen
        self.scores: dict[str, float] = {}
        if args.start:
            self.restore()
        for block in self.model.blocks:
            block.forward = torch.compile(block.forward, dynamic=False)
            block.forward_after = torch.compile(block.forward_after, dynamic=False)

    # --- checkpoints ---

    def restore(self) -> None:
        state = torch.load(self.args.run / "state.pt", weights_only=True)
        self.model.load_state_dict(state["ema" if self.args.averaged else "model"])
        self.ema.load_state_dict(state["ema"])
        if not self.args.averaged:
            for optimizer, name in ((self.muon, "muon"), (self.adam, "adam")):
                peaks = [g["peak"] for g in optimizer.param_groups]
                optimizer.load_state_dict(state[name])
                for group, peak in zip(optimizer.param_groups, peaks):
                    group["peak"] = peak
        self.step, self.seen, self.scores = state["step"], state["seen"], state["scores"]
        self.source.rng = random.Random(self.args.seed + self.step)

    def save(self) -> None:
        self.args.run.mkdir(parents=True, exist_ok=True)
        state = {
            "model": self.model.state_dict(), "ema": self.ema.state_dict(), "muon": self.muon.state_dict(),
            "adam": self.adam.state_dict(), "step": self.step, "seen": self.seen, "scores": self.scores,
        }
        torch.save(state, self.args.run / "state.part")
        (self.args.run / "state.part").rename(self.args.run / "state.pt")
        self.ema.save(self.args.run)

    # --- one step ---

    def rate(self, fraction: float) -> float:
        """Constant after a short warm-up, then linearly down to zero."""
        warm = min(1.0, (self.step - self.first_step + 1) / 60)
        return warm * min(1.0, (1.0 - fraction) / self.args.decay)

    def learn(self, batch: Batch, hidden: torch.Tensor) -> tuple[float, torch.Tensor]:
        with torch.autocast("cpu", torch.bfloat16):
            logits = self.model.logits(hidden.reshape(-1, hidden.shape[-1])[batch.targets - 1]).float()
        answers = batch.ids.reshape(-1)[batch.targets]
        loss = F.cross_entropy(logits, answers)
        loss.backward()
        return loss.item(), logits.detach().argmax(-1) == answers

    def update(self, fraction: float) -> None:
        torch.nn.utils.clip_grad_norm_([g for group in self.adam.param_groups for g in group["params"]], 1.0)
        for optimizer in (self.muon, self.adam):
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * self.rate(fraction)
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        with torch.no_grad():
            keep = min(1 - 1 / EMA_STEPS, self.step / (self.step + 10))
            torch._foreach_lerp_(list(self.ema.parameters()), list(self.model.parameters()), 1 - keep)
        self.step += 1

    def note(self, scores: dict[str, list[float]]) -> None:
        for family, values in scores.items():
            mean = sum(values) / len(values)
            weight = 1 - 0.97 ** len(values)
            self.scores[family] = self.scores.get(family, 0.0) * (1 - weight) + mean * weight
        for family, base in WEIGHTS.items():
            self.source.weights[family] = base * (0.3 + 10 * (1 - self.scores.get(family, 0.5)))

    def batch(self) -> tuple[Batch, torch.Tensor]:
        """The next batch and its hidden states."""
        if self.source.rng.random() >= (self.args.long if self.seen > LONG_FROM else 0):
            batch = self.source.batch(self.seen)
            return batch, self.model(batch.ids, batch.positions)
        if not self.past or not self.past.uses:
            self.past = self.long_text(self.source.rng)
        self.past.uses -= 1
        batch = self.source.batch_behind(self.seen, self.past.tokens, self.past.tools, TOKENS // 512, 256)
        return batch, self.model.forward_after(batch.ids, batch.positions, self.past.cache)

    def long_text(self, rng: random.Random) -> Past:
        """A long start of a system prompt; in half of the cases all of it, with tools described at length."""
        tokens = rng.choices(*zip(*PASTS))[0]
        tools: list[Tool] | None = None
        if rng.random() < 0.5:
            if rng.random() < 0.6:
                tools = agent(Literals(rng), self.source.sentences, length=tokens // 300)
            else:
                kinds = rng.sample([*KINDS, "invented", "invented"], rng.randint(2, 6))
                tools = toolset(Literals(rng), kinds, rng.randint(0, 6), self.source.sentences, length=tokens // 250)
        ids = long_start(rng, self.tokenizer, self.documents, tokens, tools)
        return Past(tokens, tools, self.model.remember(ids), PAST_USES) if ids else self.long_text(rng)

    def run(self) -> None:
        self.first_step = self.step
        begin = last_report = last_save = time.monotonic()
        seconds = self.args.minutes * 60
        window: list[float] = []
        window_tokens = window_targets = 0
        while (elapsed := time.monotonic() - begin) < seconds:
            with torch.autocast("cpu", torch.bfloat16):
                batch, hidden = self.batch()
            loss, correct = self.learn(batch, hidden)
            self.update(elapsed / seconds)
            self.note(turn_scores(correct, batch))
            self.seen += batch.ids.numel()
            window.append(loss)
            window_tokens += batch.ids.numel()
            window_targets += len(batch.targets)
            now = time.monotonic()
            if now - last_report > 30:
                mean = sum(window[-50:]) / len(window[-50:])
                print(f"{(now - begin) / 60:6.1f} min  step {self.step}  {self.seen / 1e6:.2f} M tokens  loss {mean:.4f}  "
                      f"{window_tokens / (now - last_report):.0f} tokens/s  {window_targets / window_tokens:.0%} learned", flush=True)
                print("   " + " ".join(f"{f} {s:.0%}" for f, s in sorted(self.scores.items())), flush=True)
                window, window_tokens, window_targets, last_report = [], 0, 0, now
            if now - last_save > 120:
                self.save()
                last_save = now
        self.save()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=100)
    parser.add_argument("--run", type=Path, default=Path("/tmp/trunkline-demo/run"), help="folder for checkpoints")
    parser.add_argument("--work", type=Path, default=Path("/tmp/trunkline-demo"), help="folder for collected text")
    parser.add_argument("--start", action="store_true", help="continue from the checkpoint in --run")
    parser.add_argument("--averaged", action="store_true", help="with --start: continue from the averaged weights, with a new optimizer")
    parser.add_argument("--weights", type=Path, help="folder of exported weights to begin with, where no checkpoint is left")
    parser.add_argument("--seen", type=int, default=0, help="tokens that those weights saw; the mix of samples goes by it")
    parser.add_argument("--lr", type=float, default=0.01, help="peak rate of Muon")
    parser.add_argument("--embed-lr", type=float, default=0.002, help="peak rate of AdamW")
    parser.add_argument("--decay", type=float, default=0.9, help="last part of the time in which the rate falls to zero")
    parser.add_argument("--long", type=float, default=0.1, help="share of steps behind a long text")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch._dynamo.config.cache_size_limit = 64
    torch._dynamo.config.accumulated_cache_size_limit = 1024
    Trainer(args).run()


if __name__ == "__main__":
    main()
