"""Mining hard negatives: time and peak memory, beside ``sentence_transformers.util.mine_hard_negatives``.

    python benchmarks/mining.py                                    # 100,000 queries, 100,000 documents, dimension 384
    python benchmarks/mining.py --queries 20000 --documents 20000 --systems harness st-faiss

Every system does the same work in a process of its own with one thread: from float32 vectors on disk and texts in
memory to a file of negatives with scores, ``--keep`` a query of ``--top-k`` hits, those closer to the positive than
95 % of its score left out. Nobody encodes: ours reads the stores that ``embed`` wrote, in blocks; the other library
wants a model and gets one that looks the vectors up, and holds those of all queries and documents, as it does where a
model encodes them. Both copy the documents' vectors into an index (``st-torch`` and ``harness-exact``: score with
torch). Ours counts, samples and bins for its audit besides. ``baseline`` imports what a system imports, and makes the
texts, and does nothing else. Peak memory is ru_maxrss, mapped files included. That all found the same is checked.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write

SYSTEMS = ("harness", "harness-exact", "st-faiss", "st-torch")
SHARE = 0.95
BLOCK = 10_000


def write_vectors(folder: Path, queries: int, documents: int, dimension: int) -> None:
    """Documents around 1 in 20 as many centres, so that there are near ones; a query near its own document."""
    random = np.random.default_rng(0)
    centre_CD = random.standard_normal((max(1, documents // 20), dimension), dtype=np.float32)
    document_ND = np.lib.format.open_memmap(folder / "documents.npy", "w+", np.float32, (documents, dimension))
    query_QD = np.lib.format.open_memmap(folder / "queries.npy", "w+", np.float32, (queries, dimension))
    for start in range(0, documents, BLOCK):
        count = min(BLOCK, documents - start)
        near_ND = centre_CD[random.integers(len(centre_CD), size=count)]
        document_ND[start : start + count] = _unit(near_ND + random.standard_normal((count, dimension), np.float32))
    for start in range(0, queries, BLOCK):
        own_B = np.arange(start, min(start + BLOCK, queries)) % documents
        noise_BD = random.standard_normal((len(own_B), dimension), np.float32) * (0.5 / dimension**0.5)
        query_QD[start : start + len(own_B)] = _unit(document_ND[own_B] + noise_BD)


def write_stores(folder: Path, sizes: dict[str, int]) -> None:
    """The same vectors as the step ``embed`` leaves them."""
    from harness.vectors.space import Space
    from harness.vectors.writer import write_store

    space = Space("made up", "", "", "mean", sizes["dimension"], True)
    for name, kind in (("documents", "document"), ("queries", "query")):
        vector_ND = np.load(folder / f"{name}.npy", mmap_mode="r")

        def encode(some: Sequence[str], vector_ND: np.ndarray = vector_ND) -> np.ndarray:
            return np.asarray(vector_ND[[int(text.split()[2]) for text in some]])

        ids = [f"{kind[0]}{number}" for number in range(len(vector_ND))]
        write_store(folder / f"store-{name}", ids, texts(kind, len(vector_ND)), encode, space)


def _unit(vector_ND: np.ndarray) -> np.ndarray:
    return vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)


def texts(prefix: str, count: int) -> list[str]:
    """As long as a product's title."""
    return [f"{prefix} number {number:09d} of those that were made up for this measurement" for number in range(count)]


# ------------------------------------------------------------------------------------------------- in its own process


def run_harness(folder: Path, sizes: dict[str, int], kind: str) -> None:
    """What the step ``mine.base`` does."""
    from harness.data.records import Documents, Record
    from harness.recipe import MineSettings
    from harness.vectors.index import VectorIndex
    from harness.vectors.mining import Ground, mine
    from harness.vectors.store import StoreRows, VectorStore

    count = sizes["documents"]
    names = [f"d{number}" for number in range(count)]
    documents = Documents(names, texts("document", count), ["en"] * count, [""] * count)
    records = [
        Record(f"q{number}", text, "en", "", {names[number % count]: 1.0})
        for number, text in enumerate(texts("query", sizes["queries"]))
    ]
    stored, asked = (VectorStore.open(folder / f"store-{name}") for name in ("documents", "queries"))
    row_N, query_Q = stored.rows_of(names), asked.rows_of([record.id for record in records])
    ground = Ground(
        documents, records, VectorIndex.build(StoreRows(stored, row_N), names, kind=kind),  # type: ignore[arg-type]
        lambda query_B: asked.vectors(query_Q[query_B]), lambda row_B: stored.vectors(row_N[row_B]), False, {},
    )  # fmt: skip
    settings = MineSettings(top_k=sizes["top_k"], keep=sizes["keep"], share=SHARE)
    mine(folder / f"mined-{kind}", ground, settings)


def run_other(folder: Path, sizes: dict[str, int], use_faiss: bool) -> None:
    """The same by the other library; it looks at ``range_max`` hits and the positive."""
    import torch
    from datasets import Dataset
    from sentence_transformers import SentenceTransformer, util

    class Looked(SentenceTransformer):
        """A model whose texts have vectors already: it only looks them up."""

        def encode_document(self, sentences: Any, **options: Any) -> Any:  # type: ignore[override]
            return np.load(folder / "documents.npy")

        def encode_query(self, sentences: Any, **options: Any) -> Any:  # type: ignore[override]
            return np.load(folder / "queries.npy")

        def get_embedding_dimension(self) -> int:
            return sizes["dimension"]

    model = Looked(modules=[torch.nn.Identity()], device="cpu", similarity_fn_name="dot")
    corpus = texts("document", sizes["documents"])
    pairs = Dataset.from_dict({
        "query": texts("query", sizes["queries"]),
        "positive": [corpus[number % len(corpus)] for number in range(sizes["queries"])],
    })  # fmt: skip
    found = util.mine_hard_negatives(
        pairs, model, corpus=corpus, range_max=sizes["top_k"] - 1, relative_margin=1 - SHARE,
        num_negatives=sizes["keep"], output_format="labeled-list", output_scores=True, use_faiss=use_faiss,
        verbose=False,
    )  # fmt: skip
    found.to_parquet(str(folder / f"other-{use_faiss}.parquet"))


def run_baseline(folder: Path, sizes: dict[str, int], other: bool) -> None:
    """Imports and texts alone."""
    import torch  # noqa: F401

    if other:
        import datasets  # noqa: F401
        import sentence_transformers  # noqa: F401
    else:
        import faiss  # noqa: F401
        import pyarrow.parquet  # noqa: F401

        import harness.vectors.mining  # noqa: F401
    assert len(texts("document", sizes["documents"])) + len(texts("query", sizes["queries"]))


def work(system: str, folder: Path, sizes: dict[str, int]) -> None:
    """One system, measured; prints JSON."""
    import torch

    torch.set_num_threads(1)
    started = time.perf_counter()
    if system.startswith("baseline"):
        run_baseline(folder, sizes, other=system == "baseline-st")
    elif system.startswith("harness"):
        run_harness(folder, sizes, "exact" if system == "harness-exact" else "faiss")
    else:
        run_other(folder, sizes, use_faiss=system == "st-faiss")
    seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_SELF)
    told = {"seconds": seconds, "cpu_seconds": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
    sys.stdout.write(json.dumps(told) + "\n")


# ------------------------------------------------------------------------------------------------------- the comparison


def scores_of(system: str, folder: Path) -> dict[str, list[float]]:
    """Query text -> the negatives' scores, best first; queries without negatives have none."""
    import pyarrow.parquet as pq

    if system.startswith("harness"):
        from harness.vectors.mining import read_tables

        kind = "exact" if system == "harness-exact" else "faiss"
        rows = [row for _, table in read_tables(folder / f"mined-{kind}") for row in table.to_pylist()]
        named = {f"q{number}": text for number, text in enumerate(texts("query", len(rows)))}
        return {named[row["query_id"]]: row["scores"] for row in rows if row["scores"]}
    table = pq.read_table(folder / f"other-{system == 'st-faiss'}.parquet")
    return {row["query"]: row["scores"][1:] for row in table.to_pylist()}


def agreement(system: str, reference: str, folder: Path) -> float:
    """The share of queries whose negatives have the same scores to 1e-5."""
    ours, theirs = scores_of(system, folder), scores_of(reference, folder)
    same = [
        len(ours.get(name, [])) == len(theirs.get(name, []))
        and bool(np.allclose(ours.get(name, []), theirs.get(name, []), atol=1e-5))
        for name in ours.keys() | theirs.keys()
    ]
    return float(np.mean(same)) if same else 1.0


def measured(system: str, folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """One system in a process of its own."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1",
                   "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}  # fmt: skip
    environment["HF_DATASETS_CACHE"] = str(folder / "cache")
    command = [sys.executable, __file__, "--work", system, "--folder", str(folder), "--sizes", json.dumps(sizes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    return json.loads(done.stdout.strip().splitlines()[-1])


def table(results: dict[str, Any]) -> list[str]:
    """A Markdown table."""
    columns = ("system", "seconds", "of processor", "peak MiB", "above its baseline MiB", "same negatives")
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * 5 + "|"]
    for system, told in results.items():
        if "failed" in told:
            lines.append(f"| {system} | {told['failed']} | | | | |")
            continue
        agrees = f"{told['agreement']:.2%}" if "agreement" in told else "-"
        above = f"{told['above_bytes'] / 2**20:,.0f}" if "above_bytes" in told else "-"
        cells = [system, f"{told['seconds']:.1f}", f"{told['cpu_seconds']:.1f}", f"{told['peak_bytes'] / 2**20:,.0f}"]
        lines.append("| " + " | ".join([*cells, above, agrees]) + " |")
    return lines


def main() -> None:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=100_000)
    parser.add_argument("--documents", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--top-k", type=int, default=50)
    parser.add_argument("--keep", type=int, default=16)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/mining.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.folder, options.sizes)
        return
    sizes = {name: getattr(options, name) for name in ("queries", "documents", "dimension", "top_k", "keep")}
    told = provenance()
    with tempfile.TemporaryDirectory(prefix="mining-") as name:
        folder = Path(name)
        write_vectors(folder, options.queries, options.documents, options.dimension)
        write_stores(folder, sizes)
        baselines = {"harness": "baseline-harness", "st": "baseline-st"}
        kinds = {system: baselines[system.split("-")[0]] for system in options.systems}
        everything = [*options.systems, *sorted(set(kinds.values()))]
        results = {}
        for system in everything:
            results[system] = measured(system, folder, sizes)
            sys.stderr.write(f"{system}: {results[system]}\n")
        for system, baseline in kinds.items():
            if "failed" not in results[system] and "failed" not in results[baseline]:
                results[system]["above_bytes"] = results[system]["peak_bytes"] - results[baseline]["peak_bytes"]
        done = [system for system in options.systems if "failed" not in results[system]]
        reference = next((system for system in done if system.startswith("st")), None)
        for system in done:
            if reference and system != reference:
                results[system]["agreement"] = agreement(system, reference, folder)
    content = {"provenance": told, "sizes": sizes, "threads": 1, "systems": results}
    write(options.output, content)
    heading = f"{sizes['queries']:,} queries x {sizes['documents']:,} documents x {sizes['dimension']}, one thread"
    sys.stdout.write("\n".join([heading, "", *table(results)]) + "\n")


if __name__ == "__main__":
    main()
