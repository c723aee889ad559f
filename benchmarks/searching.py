"""Exact search: the share of this machine's matrix product that it reaches, its memory, and other searchers beside it.

    python benchmarks/searching.py                      # 2,000 queries x 1,000,000 documents x 384, all systems
    python benchmarks/searching.py --queries 20000 --systems harness

Every system finds the ``--k`` best of the same float32 vectors in a process of its own with the same threads: ours
(``VectorIndex``, kind ``exact``), ``sentence_transformers.util.semantic_search`` with its own sizes of chunks, and
FAISS (``IndexFlatIP``). Timed is the search alone: vectors are read, checked and put into an index before, which
``ready`` tells. Each process measures the matrix product right before and after its search: square matrices of 4,096,
and blocks of 1,024 queries and 16,384 documents; the fastest of all is what the search is a share of. Peak memory is
ru_maxrss, documents included, mapped files too. That all found the same is checked: scores to 1e-5, and ids wherever
scores differ by more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write

SYSTEMS = ("harness", "semantic_search", "faiss")
BLOCK = 10_000
SQUARE, QUERIES, DOCUMENTS = 4_096, 1_024, 16_384
CLOSE = 1e-5

Found = tuple[np.ndarray, np.ndarray]  # score_QK, row_QK


def write_vectors(folder: Path, queries: int, documents: int, dimension: int) -> None:
    """Documents around 1 in 20 as many centres, so that there are near ones; queries near documents."""
    random = np.random.default_rng(0)
    centre_CD = random.standard_normal((max(1, documents // 20), dimension), dtype=np.float32)
    document_ND = np.lib.format.open_memmap(folder / "documents.npy", "w+", np.float32, (documents, dimension))
    for start in range(0, documents, BLOCK):
        count = min(BLOCK, documents - start)
        near_ND = centre_CD[random.integers(len(centre_CD), size=count)]
        document_ND[start : start + count] = _unit(near_ND + random.standard_normal((count, dimension), np.float32))
    own_Q = np.sort(random.integers(documents, size=queries))
    noise_QD = random.standard_normal((queries, dimension), np.float32) / dimension**0.5
    np.save(folder / "queries.npy", random.permutation(_unit(document_ND[own_Q] + noise_QD)))


def _unit(vector_ND: np.ndarray) -> np.ndarray:
    return vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True)


# ------------------------------------------------------------------------------------------------- in its own process


def harness_search(folder: Path, query_QD: np.ndarray, k: int) -> Callable[[], Found]:
    """Over the mapped file, as a run's index has it."""
    from harness.vectors.index import VectorIndex

    document_ND = np.load(folder / "documents.npy", mmap_mode="r")
    index = VectorIndex.build(document_ND, [f"{row:09}" for row in range(len(document_ND))], kind="exact")
    return lambda: index.search(query_QD, k)


def semantic_search(folder: Path, query_QD: np.ndarray, k: int) -> Callable[[], Found]:
    """With vectors of length 1 in memory and the inner product, its faster way."""
    import torch
    from sentence_transformers import util

    query, document = torch.from_numpy(query_QD), torch.from_numpy(np.load(folder / "documents.npy"))

    def search() -> Found:
        hits = util.semantic_search(query, document, top_k=k, score_function=util.dot_score)
        pairs = [[(hit["score"], hit["corpus_id"]) for hit in own] for own in hits]
        return np.array([[s for s, _ in own] for own in pairs]), np.array([[row for _, row in own] for own in pairs])

    return search


def faiss_search(folder: Path, query_QD: np.ndarray, k: int) -> Callable[[], Found]:
    """A flat index, filled block by block."""
    import faiss
    import torch

    faiss.omp_set_num_threads(torch.get_num_threads())
    document_ND = np.load(folder / "documents.npy", mmap_mode="r")
    index = faiss.IndexFlatIP(document_ND.shape[1])
    for start in range(0, len(document_ND), DOCUMENTS):
        index.add(np.ascontiguousarray(document_ND[start : start + DOCUMENTS]))
    return lambda: index.search(query_QD, k)


def product_rates(dimension: int, repeats: int = 3) -> dict[str, float]:
    """Floating point operations a second of torch's float32 matrix product, the fastest of each shape."""
    import torch

    best = {}
    for name, rows, inner, columns in (("square", SQUARE, SQUARE, SQUARE), ("block", QUERIES, dimension, DOCUMENTS)):
        left, right, out = torch.randn(rows, inner), torch.randn(columns, inner), torch.empty(rows, columns)
        for _ in range(repeats):
            started = time.perf_counter()
            torch.mm(left, right.T, out=out)
            reached = 2 * rows * inner * columns / (time.perf_counter() - started)
            best[name] = max(best.get(name, 0.0), reached)
    return best


def work(system: str, folder: Path, sizes: dict[str, int]) -> None:
    """One system, measured; prints JSON, and leaves its hits in the folder."""
    import torch

    torch.set_num_threads(sizes["threads"])
    query_QD = np.load(folder / "queries.npy")[: sizes["queries"]]
    prepare = {"harness": harness_search, "semantic_search": semantic_search, "faiss": faiss_search}[system]
    started = time.perf_counter()
    search = prepare(folder, query_QD, sizes["k"])
    ready = time.perf_counter() - started
    rates = [product_rates(query_QD.shape[1])]
    started, worked = time.perf_counter(), time.process_time()
    score_QK, row_QK = search()
    seconds, worked = time.perf_counter() - started, time.process_time() - worked
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    rates.append(product_rates(query_QD.shape[1]))
    rate = max(reached for told in rates for reached in told.values())
    np.savez(folder / f"{system}.npz", score=score_QK.astype(np.float32), row=row_QK)
    reached = 2 * sizes["queries"] * sizes["documents"] * query_QD.shape[1] / seconds
    told = {"seconds": seconds, "cpu_seconds": worked, "ready_seconds": ready, "flops_per_second": reached,
            "product_flops_per_second": rate, "products_before_and_after": rates, "share_of_product": reached / rate,
            "queries_per_second": sizes["queries"] / seconds, "peak_bytes": peak}  # fmt: skip
    sys.stdout.write(json.dumps(told) + "\n")


# ------------------------------------------------------------------------------------------------------- the comparison


def same_hits(ours: Found, theirs: Found) -> float:
    """The share of queries with the same hits: equal scores to 1e-5, and the same ids but where scores are as close.

    A hit whose score is within 1e-5 of the last one's may be another: which of them is last, rounding decides.
    """
    (own_QK, own_row_QK), (other_QK, other_row_QK) = ours, theirs
    assert own_QK.shape == other_QK.shape, "the same queries and as many hits"
    same_Q = (np.abs(own_QK - other_QK) <= CLOSE).all(axis=1)
    for query in np.flatnonzero(same_Q):
        clear = own_QK[query] > own_QK[query, -1] + 2 * CLOSE
        same_Q[query] = np.isin(own_row_QK[query, clear], other_row_QK[query]).all()
    return float(same_Q.mean())


def measured(system: str, folder: Path, sizes: dict[str, int]) -> dict[str, Any]:
    """One system in a process of its own."""
    threads = str(sizes["threads"])
    environment = os.environ | dict.fromkeys(["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"], threads)
    environment["HF_HUB_OFFLINE"] = "1"
    command = [sys.executable, __file__, "--work", system, "--folder", str(folder), "--sizes", json.dumps(sizes)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    if done.returncode:
        return {"failed": f"exit code {done.returncode}: {done.stderr.strip().splitlines()[-1:]}"}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def compare(folder: Path, sizes: dict[str, int], systems: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Every system's numbers; of those after the first, how many queries have the first one's hits."""
    results: dict[str, dict[str, Any]] = {}
    first: Found | None = None
    for system in systems:
        results[system] = measured(system, folder, sizes)
        sys.stderr.write(f"{system}: {results[system]}\n")
        if "failed" in results[system]:
            continue
        with np.load(folder / f"{system}.npz") as stored:
            found = stored["score"], stored["row"]
        if first is not None:
            results[system]["same_hits"] = same_hits(first, found)
        first = first or found
    return results


def table(results: dict[str, Any]) -> list[str]:
    """A Markdown table."""
    columns = ("system", "seconds", "of processor", "queries/s", "GFLOP/s", "matrix product, GFLOP/s", "share",
               "peak MiB", "ready, s", "same hits")  # fmt: skip
    lines = ["| " + " | ".join(columns) + " |", "|---" + "|---:" * (len(columns) - 1) + "|"]
    for system, told in results.items():
        if "failed" in told:
            lines.append(f"| {system} | {told['failed']} |" + " |" * (len(columns) - 2))
            continue
        cells = [system, f"{told['seconds']:.1f}", f"{told['cpu_seconds']:.1f}", f"{told['queries_per_second']:.1f}",
                 f"{told['flops_per_second'] / 1e9:.0f}", f"{told['product_flops_per_second'] / 1e9:.0f}",
                 f"{told['share_of_product']:.0%}", f"{told['peak_bytes'] / 2**20:,.0f}",
                 f"{told['ready_seconds']:.1f}", f"{told['same_hits']:.2%}" if "same_hits" in told else "-"]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, compare, print, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--queries", type=int, default=2_000)
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--dimension", type=int, default=384)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--threads", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=SYSTEMS)
    parser.add_argument("--folder", type=Path, help="where the vectors are, or are written to be used again")
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/searching.json"))
    parser.add_argument("--work", help=argparse.SUPPRESS)
    parser.add_argument("--sizes", type=json.loads, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.work:
        work(options.work, options.folder, options.sizes)
        return 0
    sizes = {name: getattr(options, name) for name in ("queries", "documents", "dimension", "k", "threads")}
    told = provenance()
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="searching-")))
        folder.mkdir(parents=True, exist_ok=True)
        if not (folder / "queries.npy").exists():
            write_vectors(folder, options.queries, options.documents, options.dimension)
        shapes = [np.load(folder / name, mmap_mode="r").shape for name in ("queries.npy", "documents.npy")]
        assert shapes[0][0] >= options.queries and shapes[1] == (options.documents, options.dimension), shapes
        results = compare(folder, sizes, options.systems)
    write(options.output, {"provenance": told, "sizes": sizes, "systems": results})
    heading = (f"{options.queries:,} queries x {options.documents:,} documents x {options.dimension}, the "
               f"{options.k} best, {options.threads} threads")  # fmt: skip
    sys.stdout.write("\n".join([heading, "", *table(results)]) + "\n")
    return int(any("failed" in result for result in results.values()))


if __name__ == "__main__":
    sys.exit(main())
