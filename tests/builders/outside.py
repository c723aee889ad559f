"""Outside sets for tests: a BEIR folder with what real ones have, and the same as a task of ``mteb`` in memory."""

from __future__ import annotations

import gzip
import json
import random
from pathlib import Path
from typing import Any

from builders.tiny_data import LANGUAGES, tiny_roots, write_beir

SPLIT = "test.v2"


def outside_lines(documents: int = 40, seed: int = 5) -> tuple[list[Any], list[Any], list[tuple[str, str, float]]]:
    """(corpus, queries, judgments): graded, titles here and there, and queries that are documents, too (``d1``)."""
    rng, roots = random.Random(seed), tiny_roots(40)
    words = [rng.sample(roots, 4) for _ in range(documents)]
    corpus = [
        {"_id": f"d{n}", "title": own[0] if n % 2 else "", "text": " ".join(own[1:] if n % 2 else own)}
        for n, own in enumerate(words)
    ]
    queries, judged = [], []
    for n, own in enumerate(words[: documents // 2]):
        before, after = list(LANGUAGES.values())[n % 3]
        id_ = f"d{n}" if n % 2 else f"query {n}"
        queries.append({"_id": id_, "text": " ".join(before + word + after for word in own)})
        judged += [(id_, f"d{n}", 2), (id_, f"d{n + 1}", 1), (id_, f"d{n + 2}", 0)]
    return corpus, queries, judged


def write_outside(folder: Path) -> Path:
    """The set as a BEIR folder: gzipped queries, a split with a dot in its name, and lines that are no use."""
    corpus, queries, judged = outside_lines()
    corpus.append({"_id": "empty", "title": "", "text": ""})
    queries.append({"_id": "unanswered", "text": "nothing"})
    more = [("unanswered", "d1", 0), ("query 0", "gone", 1), ("gone", "d1", 1), ("query 2", "empty", 1)]
    write_beir(folder, corpus, queries, train=[("gone", "gone", 9)], **{SPLIT: [*judged, *more]})
    plain = folder / "queries.jsonl"
    (folder / "queries.jsonl.gz").write_bytes(gzip.compress(plain.read_bytes()))
    plain.unlink()
    return folder


def mteb_task(**subsets: Any) -> Any:
    """A task of ``mteb`` whose data lies in memory; ``subsets``: name -> (corpus, queries, judgments)."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    many = list(subsets) != ["default"]
    langs = ["eng-Latn"]

    class InMemory(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="InMemoryRetrieval", description="made up", reference=None, type="Retrieval", category="t2t",
            modalities=["text"], eval_splits=["test"], eval_langs=dict.fromkeys(subsets, langs) if many else langs,
            main_score="ndcg_at_10", dataset={"path": "none/none", "revision": "1"}, date=("2026-01-01", "2026-01-02"),
            domains=[], task_subtypes=[], license=None, annotations_creators=None, dialect=[], sample_creation=None,
            bibtex_citation="",
        )  # fmt: skip

        def load_data(self, *args: Any, **kwargs: Any) -> None:
            self.dataset = {
                name: {"test": {"corpus": _table(Dataset, corpus), "queries": _table(Dataset, queries),
                                "relevant_docs": _nested(judged), "top_ranked": None}}
                for name, (corpus, queries, judged) in subsets.items()
            }  # fmt: skip
            self.data_loaded = True

    return InMemory()


def _table(kind: Any, lines: list[Any]) -> Any:
    return kind.from_list([{"id": line["_id"], **{k: v for k, v in line.items() if k != "_id"}} for line in lines])


def _nested(judged: list[tuple[str, str, float]]) -> dict[str, dict[str, int]]:
    found: dict[str, dict[str, int]] = {}
    for query, document, grade in judged:
        found.setdefault(query, {})[document] = int(grade)
    return found


def read_jsonl(path: Path) -> list[Any]:
    """The objects of a JSONL file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]
