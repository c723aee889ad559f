"""Logs of pairs in the words of the toy data set, and mixtures of their tokens: what the teacher trains on."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from builders.logs import write
from builders.tiny_data import tiny_roots

from harness.data.collator import Collator
from harness.data.mixture import Mixture, MixtureSource
from harness.data.token_cache import CacheSettings, TokenCache, Tokenise, tokenizer_fingerprint
from harness.data.token_writer import build_token_cache
from harness.encoders.encoder import Encoder

Pairs = list[dict[str, Any]]
ASK, READ = (f"{word} " for word in tiny_roots(30)[:2])  # words that the toy tokenizer knows
LOGS = {"clicks": (ASK, READ), "orders": ("", "")}  # name -> the data set's prompts of both sides


def pairs(count: int, seed: int) -> Pairs:
    """Queries of one to three words in two languages, each with a text of two to six; some stand twice."""
    rng, words = random.Random(seed), tiny_roots(30)
    return [
        {
            "asked": " ".join(rng.sample(words, rng.randint(1, 3))),
            "found": " ".join(rng.sample(words, rng.randint(2, 6))),
            "lang": "aa" if number % 3 else "bb",
        }
        for number in range(count)
    ]


def tokenise(encoder: Encoder, prompt: str) -> Tokenise:
    """With this prompt, cut to the encoder's length."""
    collator = Collator(encoder.tokenizer, prompt=prompt, max_length=encoder.max_length)
    told = tokenizer_fingerprint(encoder.tokenizer, prompt=prompt, max_length=encoder.max_length)
    return Tokenise(collator.tokens, told, len(encoder.tokenizer))


def pair_cache(folder: Path, rows: Pairs, encoder: Encoder, prompts: Sequence[str] = ("", "")) -> TokenCache:
    """The tokens of a log's pairs, below ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "log.parquet"
    if not path.exists():
        write(path, rows)
    texts = {name: tokenise(encoder, prompt) for name, prompt in zip(("asked", "found"), prompts, strict=True)}
    return build_token_cache(folder / "tokens", [path], CacheSettings(texts))


def pair_mixture(folder: Path, encoder: Encoder, batch_size: int, **changes: Any) -> Mixture:
    """Of the two logs, their caches below ``folder``."""
    sources = []
    for number, (name, prompts) in enumerate(LOGS.items()):
        cache = pair_cache(folder / name, pairs(60 + 40 * number, number), encoder, prompts)
        sources.append(MixtureSource(name, cache.streams(seed=[5, number], block=8, window=3)))
    return Mixture(sources, **{"batch_size": batch_size, "seed": 5} | changes)


def write_run_logs(root: Path, *, leaked: int = 0) -> dict[str, Any]:
    """The tiny data set's training pairs as two logs below ``root``; what ``data.streams`` says of them.

    Every other query has a context, its document's text; ``leaked``: so many test queries are asked there, too.
    """
    data = root / "data"
    texts = {line["_id"]: line for name in ("corpus", "queries") for line in _lines(data / f"{name}.jsonl")}
    rows = []
    for split, most in (("train", None), ("test", leaked)):
        judged = [line.split("\t") for line in (data / f"qrels/{split}.tsv").read_text().splitlines()[1:]]
        pairs_ = [(query, document) for query, document, score in judged if score != "0"]
        rows += [
            {"asked": texts[query]["text"], "found": texts[document]["text"], "lang": texts[query]["lang"],
             "expansion": "oracle " + texts[document]["text"] if number % 2 else None}
            for number, (query, document) in enumerate(pairs_[:most])
        ]  # fmt: skip
    (root / "logs").mkdir(exist_ok=True)
    half = len(rows) // 2
    write(root / "logs/clicks.parquet", [*rows[:half], rows[0]])  # one of them twice
    write(root / "logs/orders.jsonl", rows[half:])
    stream = {"query": "asked", "positive": "found", "context": "expansion"}
    return {
        "clicks": stream | {"path": str(root / "logs/clicks.parquet"), "prompts": {"query": "luki "}},
        "orders": stream | {"path": str(root / "logs/orders.jsonl"), "weight": 500},
    }


def _lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.open(encoding="utf-8")]
