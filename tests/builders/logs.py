"""Query logs of some thousand lines as Parquet and JSONL files, caches of them; ``python -m builders.logs DIR``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet as parquet
import torch
import torch.distributed as dist
from builders.tiny_models import byte_level_tokenizer, word_piece_tokenizer

from harness.data.collator import Collator
from harness.data.mixture import Mixture, MixtureSource
from harness.data.stream import TokenBatches
from harness.data.token_cache import CacheSettings, TokenCache, Tokenise, tokenizer_fingerprint
from harness.data.token_writer import build_token_cache
from harness.runtime.distributed import join_processes, rank, wait_for_all, world_size

WORDS = ["red", "blue", "shoe", "hat", "Schuh", "rot", "帽子", "belt", "été", "coat", "wool", "42"]
LANGUAGES = ["en", "en", "en", "de", "de", "fr"]
Rows = list[dict[str, Any]]


def log(rows: int, seed: int = 0) -> Rows:
    """Queries, some of them asked more than once; each has a positive, its language, and a group."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(rows):
        words = [WORDS[at] for at in random.integers(len(WORDS), size=random.integers(1, 9))]
        product = int(random.integers(500))
        found.append({"text": " ".join(words), "positive": f"product {product}", "lang": LANGUAGES[product % 6]})
    return found


def write(path: Path, rows: Rows, *, group: int = 100) -> Path:
    """One file of the kind that its name says."""
    if path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=group)
    else:
        path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    return path


def write_logs(folder: Path, rows: Rows, files: int = 5) -> list[Path]:
    """Files of both kinds."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = np.array_split(np.arange(len(rows)), files)
    return [
        write(folder / f"{number}.{'jsonl' if number % 2 else 'parquet'}", [rows[row] for row in part])
        for number, part in enumerate(parts)
    ]


def collator(side: str = "right", *, prompt: str = "query: ", max_length: int = 8) -> Collator:
    """Of a tokenizer that pads on this side."""
    make = word_piece_tokenizer if side == "right" else byte_level_tokenizer
    return Collator(make([" ".join(WORDS)] * 3), prompt=prompt, max_length=max_length, chunks=2)


def tokenise(made: Collator, *, prompt: str = "query: ", max_length: int = 8) -> Tokenise:
    """What a cache needs of a collator."""
    tokenizer = made._tokenizer
    told = tokenizer_fingerprint(tokenizer, prompt=prompt, max_length=max_length)
    return Tokenise(made.tokens, told, len(tokenizer))


def settings(**changes: Any) -> CacheSettings:
    return CacheSettings(**{"texts": {"text": tokenise(collator())}, "keys": ("positive",)} | changes)


def mixture(cache: TokenCache, **changes: Any) -> Mixture:
    streams = cache.streams(seed=[7], block=16, window=4)
    return Mixture([MixtureSource("log", streams)], **{"batch_size": 8, "seed": 3} | changes)


def batches_of(cache: TokenCache, steps: int, process: int = 0, processes: int = 1) -> list[Any]:
    """Tokens and origins of some steps, as plain values."""
    batches = TokenBatches(mixture(cache), {"text": collator()}, process=process, processes=processes)
    found = []
    for step in range(steps):
        rows = batches(step)
        tokens = torch.cat([chunk["input_ids"].sum(1) for chunk in rows.tokens["text"].chunks])
        found.append([tokens[rows.tokens["text"].restore].tolist(), rows.languages, rows.sources])
    return found


def main(folder: Path) -> None:
    """Two processes build one cache and share its batches."""
    join_processes(torch.device("cpu"))
    paths = sorted((folder / "logs").iterdir())
    cache = build_token_cache(folder / "together", paths, settings())
    found = batches_of(cache, 5, rank(), world_size())
    (folder / f"answers-{rank()}.json").write_text(json.dumps(found))
    wait_for_all()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
