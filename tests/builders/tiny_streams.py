"""Logs in the words of the tiny data set, for its tiny runs: two streams, two kinds of files, two languages each."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet as parquet

CLICKS, SEARCHES = 90, 60  # rows that are left of each


def _queries(data: Path, language: str) -> list[str]:
    rows = map(json.loads, (data / "queries.jsonl").read_text(encoding="utf-8").splitlines())
    return sorted({row["text"] for row in rows if row["lang"] == language})


def _asked(data: Path, language: str, count: int, rng: random.Random) -> list[str]:
    """So many different queries, words of a language in another order."""
    texts, found = _queries(data, language), dict.fromkeys([""])
    while len(found) <= count:
        words = rng.choice(texts).split()
        found[" ".join(rng.sample(words, rng.randint(2, len(words))))] = None
    return list(found)[1:]


def write_tiny_streams(root: Path, data: Path) -> dict[str, Any]:
    """The logs below ``root/logs``; what ``data.streams`` says of them.

    ``clicks``: two Parquet files of two row groups, with what was found and where; ten rows stand twice. ``searches``:
    two JSONL files without a language but their own.
    """
    rng, folder = random.Random(5), root / "logs"
    (folder / "clicks").mkdir(parents=True)
    clicks = [{"asked": text, "found": text.split()[0], "market": language}
              for language in ("aa", "bb") for text in _asked(data, language, CLICKS // 2, rng)]  # fmt: skip
    rng.shuffle(clicks)
    for number, rows in enumerate((clicks[:40], clicks[30:])):
        table = pyarrow.Table.from_pylist(rows)
        parquet.write_table(table, folder / "clicks" / f"{number}.parquet", row_group_size=25)
    searches = _asked(data, "cc", SEARCHES, rng)
    for number, texts in enumerate((searches[:35], searches[35:])):
        lines = [json.dumps({"query": text}) + "\n" for text in texts]
        (folder / f"searches-{number}.jsonl").write_text("".join(lines), encoding="utf-8")
    return {
        "clicks": {"path": str(folder / "clicks"), "query": "asked", "positive": "found", "language": "market"},
        "searches": {"path": str(folder / "searches-*.jsonl"), "default_language": "cc", "weight": 300},
    }


def with_streams(root: Path, tree: dict[str, Any], **align: Any) -> dict[str, Any]:
    """The tiny recipe with both streams in its alignment."""
    streams = write_tiny_streams(root, Path(tree["data"]["path"]))
    tree["data"] = {**tree["data"], "streams": streams}
    tree["align"] = {**tree["align"], "streams": ["clicks", "searches"], **align}
    return tree
