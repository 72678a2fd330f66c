"""Ordinary text found on this machine: filler for long prompts, and food for the tokenizer.

Nothing of it is kept in the repository. It is read when training starts, from the Python
library, installed packages and the system's documentation.
"""

from __future__ import annotations

import ast
import gzip
import json
import random
import re
import sysconfig
from pathlib import Path

from tokenizers import Tokenizer

LIMIT = 24_000_000
PER_FILE = 60_000


def _read(path: Path) -> str:
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, gzip.BadGzipFile):
        return ""
    return raw[: PER_FILE * 2].decode("utf-8", "ignore")[:PER_FILE]


def _docstrings(path: Path) -> str:
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return ""
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, kinds))
    return "\n\n".join(text for text in found if text and len(text) > 120)[:PER_FILE]


def documents(seed: int = 0) -> list[str]:
    """Texts of the machine, shuffled."""
    library = Path(sysconfig.get_paths()["stdlib"])
    packages = Path(sysconfig.get_paths()["purelib"])
    registry = Path.home() / ".cargo/registry/src"
    sources = [
        (sorted(registry.glob("*/*/README.md")), _read),
        (sorted(registry.glob("*/*/CHANGELOG.md"))[:60], _read),
        (sorted(packages.glob("*.dist-info/METADATA")), _read),
        (sorted(packages.rglob("*.md"))[:300], _read),
        (sorted(Path("/usr/share/doc").rglob("*README*"))[:300], _read),
        (sorted(Path("/usr/share/doc").rglob("*.txt"))[:300], _read),
        (sorted(Path("/usr/share/perl").rglob("*.pod"))[:200], _read),
        (sorted(library.glob("*.py")) + sorted(library.glob("*/*.py"))[:400], _docstrings),
        (sorted(packages.glob("torch/*.py")) + sorted(packages.glob("torch/*/*.py"))[:500], _docstrings),
        (sorted(packages.glob("numpy/*/*.py"))[:200] + sorted(packages.glob("transformers/*.py"))[:200], _docstrings),
    ]
    found: list[str] = []
    total = 0
    for paths, read in sources:
        for path in paths:
            text = read(path)
            if len(text) > 500:
                found.append(text)
                total += len(text)
            if total > LIMIT:
                break
    random.Random(seed).shuffle(found)
    return found


def sentences(texts: list[str]) -> list[str]:
    """Sentences of ordinary length, as lengthening for tool descriptions and system prompts."""
    found: set[str] = set()
    for text in texts:
        for sentence in re.split(r"(?<=[.!?])\s+", text):
            sentence = " ".join(sentence.split())
            if 30 < len(sentence) < 160 and sentence[0].isupper() and sentence[-1] in ".!?" and "<" not in sentence:
                found.add(sentence)
    return sorted(found)


def filler(rng: random.Random, tokenizer: Tokenizer, documents: list[str], tokens: int) -> str:
    """About `tokens` tokens of ordinary text, glued from pieces of documents."""
    parts: list[str] = []
    missing = tokens
    while missing > 0:
        document = rng.choice(documents)
        start = rng.randrange(max(1, len(document) - 3000))
        part = document[start : start + 3000].replace("<|", "< |").strip()
        encoding = tokenizer.encode(part, add_special_tokens=False)
        if len(encoding.ids) > missing:
            part = part[: encoding.offsets[missing - 1][1]].strip()
        missing -= len(encoding.ids) + 1
        parts.append(part)
    return "\n\n".join(part for part in parts if part)


def load(cache: Path) -> tuple[list[str], list[str]]:
    """Documents and sentences, collected once and then read from `cache`."""
    if not cache.exists():
        texts = documents()
        cache.parent.mkdir(parents=True, exist_ok=True)
        cache.write_text(json.dumps({"documents": texts, "sentences": sentences(texts)}))
    data = json.loads(cache.read_text())
    return data["documents"], data["sentences"]
