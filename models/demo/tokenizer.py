"""Trains the tokenizer: byte-level BPE whose pre-tokenizer is made for copying.

A literal must become the same tokens wherever it stands (after a space, after a quote, at the
start of a line, inside JSON), so that copying is plain induction. Therefore a space is never
glued to the word after it, quotes and brackets never to their content. To keep ordinary prose
short all the same, runs of common function words take the spaces on both of their sides
(" of the ", " is a "), and commas and full stops the space after them.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

import corpus
from chat import render
from conversations import EPISODES, conversation

HERE = Path(__file__).parent
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MARKUP = ["<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>", "<tools>", "</tools>"]

#: About sixty function words, factored by first letter so that matching stays fast.
FUNCTION_WORDS = (
    "(?:a(?:lso|nd?|re|s|t)?|b(?:e(?:cause|en)?|ut|y)|c(?:an|ould)|do(?:es)?|f(?:or|rom)|h(?:as|ave|ow)|i(?:nto|f|n|s|t|ts)"
    "|m(?:ay|ust)|not|o(?:f|n|r)|s(?:hould|uch|o)|t(?:h(?:at|e(?:ir|n|re|se|y)?|is|an)|o)|us(?:ed|ing)|w(?:as|ere|h(?:at|en|ere|ich)|ill|ith|ould|e)|you(?:r)?)"
)
PATTERN = "|".join(
    [
        # A run of function words with the spaces around it, and a comma before.
        f",?(?: {FUNCTION_WORDS})+ (?=\\S)",
        # Joints of JSON.
        r'": \{"',
        r'": \["',
        r'": "',
        r'": ',
        r'", "',
        r'"\}, "',
        r'"\], "',
        r'"\}+',
        r'"\]\}*',
        r'[{\[]+"',
        r', "',
        r'\}, "',
        '"',
        # Contractions, words, single digits.
        r"'(?:s|t|re|ve|m|ll|d)(?!\p{L})",
        r"\p{L}+",
        r"\p{N}",
        # Marks of a sentence take the space after them; other marks stand alone or in runs.
        r"[.,;:!?] (?=\S)",
        r"[.,;:!?]+",
        r"`+",
        r"'+",
        r"[()]+",
        r"""[^\s\p{L}\p{N}".,;:!?`'()]+""",
        # Blanks.
        r"\n+",
        r" +",
        r"\s",
    ]
)


def build(texts: list[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(PATTERN), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size - len(SPECIAL) - len(MARKUP),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        min_frequency=4,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in SPECIAL])
    tokenizer.add_tokens([AddedToken(t, special=False, normalized=False) for t in MARKUP])
    return tokenizer


def training_texts(cache: Path, seed: int) -> list[str]:
    documents, sentences = corpus.load(cache)
    rng = random.Random(seed)
    texts = documents[:]
    texts += [render(conversation(rng, turns=4, sentences=sentences)) for _ in range(3000)]
    for family in [*EPISODES, "title"]:
        texts += [render(conversation(rng, [family], sentences=sentences)) for _ in range(150)]
    for marker in SPECIAL + MARKUP:
        texts = [text.replace(marker, "\n") for text in texts]
    return texts


def pieces(tokenizer: Tokenizer) -> list[str]:
    """Vocabulary entries made of ASCII letters only."""
    return sorted(t for t in tokenizer.get_vocab() if t.isascii() and t.isalpha() and len(t) <= 7)


def load() -> Tokenizer:
    return Tokenizer.from_file(str(HERE / "tokenizer.json"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=2048)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, default=Path("/tmp/trunkline-demo"), help="folder for collected text")
    parser.add_argument("--out", type=Path, default=HERE)
    args = parser.parse_args()
    tokenizer = build(training_texts(args.work / "corpus.json", args.seed), args.size)
    args.out.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.out / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "bos_token": None,
        "unk_token": None,
        "add_bos_token": False,
        "add_prefix_space": False,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 32768,
        "chat_template": (HERE / "chat_template.jinja").read_text(),
    }
    (args.out / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


if __name__ == "__main__":
    main()
