"""The ANN tax: how much more search effort a student's queries need than the teacher's, over up to a million vectors.

    python benchmarks/ann.py RUN --work DIR                                 # RUN: a finished run; 1,000,000 vectors
    python benchmarks/ann.py RUN --work DIR --documents 250000 --build-only     # slow, needs no idle machine
    python benchmarks/ann.py RUN --work DIR --documents 250000                  # the timings: an idle machine
    python benchmarks/ann.py --random 12000 --documents 20000 --queries 100 --work DIR      # in seconds, of nothing

The document vectors are RUN's (``vectors/documents``); where more are asked for, copies of them are added, moved by the
difference of two random documents, cut to the length of a random document's distance to its nearest neighbour. So
noise lies in the directions that documents use. Made-up vectors are for speed and the graph's difficulty; nothing is
judged among them. Queries are RUN's evaluation queries, encoded by its teacher and its students; all documents are
searched, whatever their language. Each system is held against the exact search of its own queries. One thread.

Beside the effort that stays within 1 % (recall@10 of 0.99), the table has the one from which on recall@10 is 0.95 or
more, since a thin index never comes within 1 %, and both ratios with intervals over groups of queries.

``--work`` keeps vectors, queries and indexes, so that building and timing can be two calls.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from provenance import provenance, write

ROOT = Path(__file__).resolve().parents[1]
TEACHER = "teacher"
STUDENTS = {"student-untrained": "cut", "student-aligned": "aligned", "student-refined": "refined"}
ENCODED = 100  # queries that encoders are timed on
K = 10
SEED = 0
OFTEN = 0.95  # recall that thin indexes reach, too
BLOCK = 16_384


# -------------------------------------------------------------------------------------------------- documents


def nearest_distances(vector_ND: np.ndarray, some: int = 2_000) -> np.ndarray:
    """Distances of some vectors to their nearest other one, duplicates left out."""
    random = np.random.default_rng(SEED)
    row_S = random.permutation(len(vector_ND))[:some]
    best_S = np.full(len(row_S), -1.0, dtype=np.float32)
    for start in range(0, len(vector_ND), BLOCK):
        score_SB = vector_ND[row_S] @ vector_ND[start : start + BLOCK].T
        score_SB[score_SB > 1 - 1e-5] = -1  # itself, and documents with the same text
        best_S = np.maximum(best_S, score_SB.max(axis=1))
    return np.sqrt(np.maximum(2 - 2 * best_S, 0))


def enlarged(vector_ND: np.ndarray, documents: int, path: Path) -> np.ndarray:
    """The vectors and as many moved copies as are missing, float32 [documents, D], memory-mapped at ``path``."""
    random, distance_S = np.random.default_rng(SEED), nearest_distances(vector_ND)
    big_ND = np.lib.format.open_memmap(path, "w+", np.float32, (documents, vector_ND.shape[1]))
    real = min(documents, len(vector_ND))
    big_ND[:real] = vector_ND[:real]
    for start in range(real, documents, BLOCK):
        count = min(BLOCK, documents - start)
        own, one = random.integers(len(vector_ND), size=(2, count))
        other = (one + random.integers(1, len(vector_ND), size=count)) % len(vector_ND)
        noise_BD = vector_ND[one] - vector_ND[other]
        length_B = np.linalg.norm(noise_BD, axis=1, keepdims=True)
        noise_BD *= random.choice(distance_S, (count, 1)) / np.maximum(length_B, 1e-6)
        moved_BD = vector_ND[own] + noise_BD
        big_ND[start : start + count] = moved_BD / np.linalg.norm(moved_BD, axis=1, keepdims=True)
    big_ND.flush()
    return big_ND


def random_run(count: int, queries: int) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Random vectors around centres, and queries near them: the student's are the teacher's, moved."""
    random = np.random.default_rng(SEED)

    def unit(vector_ND: np.ndarray) -> np.ndarray:
        return np.asarray(vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True), dtype=np.float32)

    centre_CD = random.standard_normal((max(8, count // 100), 32))
    near = centre_CD[random.integers(len(centre_CD), size=count + queries)]
    everything = unit(near + 0.6 * random.standard_normal((count + queries, 32)))
    asked_QD = everything[count:]
    moved_QD = unit(asked_QD + 0.08 * random.standard_normal(asked_QD.shape))
    return everything[:count], {TEACHER: asked_QD, "student-refined": moved_QD}


# -------------------------------------------------------------------------------------------------- what is asked


def run_documents(run: Path) -> np.ndarray:
    from harness.vectors.store import VectorStore

    return VectorStore.open(run / "vectors" / "documents").vectors()


def run_queries(run: Path, count: int) -> tuple[list[str], list[str]]:
    """(texts, groups) of queries of the last set that the run's data has."""
    from harness.data.prepare import load_dataset

    splits = load_dataset(run / "data").splits
    records = next(splits[name] for name in ("test", "report", "select") if splits.get(name))
    drawn = [records[row] for row in np.random.default_rng(SEED).permutation(len(records))[:count]]
    return [record.text for record in drawn], [record.group for record in drawn]


def run_encoders(run: Path, students: Sequence[str]) -> dict[str, Any]:
    """The teacher and those students that the run has."""
    from harness.encoders.folder import open_encoder

    folders = {TEACHER: run / "teacher", **{name: run / "student" / STUDENTS[name] for name in students}}
    return {name: open_encoder(folder) for name, folder in folders.items() if (folder / "harness.json").is_file()}


# -------------------------------------------------------------------------------------------------- the measurement


def prepared(options: argparse.Namespace) -> tuple[np.ndarray, dict[str, np.ndarray], dict[str, float | None]]:
    """(document vectors, each system's query vectors, milliseconds of encoding one query); kept in ``--work``."""
    work, encode_ms = options.work, {}
    work.mkdir(parents=True, exist_ok=True)
    path = work / f"documents-{options.documents}.npy"
    if options.run is None:
        vector_ND, query = random_run(options.random, options.queries)
        encode_ms = dict.fromkeys(query)
    elif not path.exists():
        vector_ND = run_documents(options.run)
    if not path.exists():
        (work / "real.json").write_text(json.dumps({"documents": len(vector_ND)}))
        enlarged(vector_ND, options.documents, path.with_suffix(".tmp.npy"))
        path.with_suffix(".tmp.npy").rename(path)
    if options.run is not None and not options.build_only:
        query, encode_ms = asked_of(options)
    elif options.run is not None:
        query = {}
    return np.load(path, mmap_mode="c"), query, encode_ms


def asked_of(options: argparse.Namespace) -> tuple[dict[str, np.ndarray], dict[str, float | None]]:
    import torch

    from harness.evaluation.ann import time_encoding

    torch.set_num_threads(1)
    (texts, _), encoders = run_queries(options.run, options.queries), run_encoders(options.run, options.students)
    query = {}
    for name, encoder in encoders.items():
        path = options.work / f"queries-{name}-{options.queries}.npy"
        if not path.exists():
            np.save(path, encoder.encode(texts, side="query"))
        query[name] = np.load(path)
    timed: dict[str, Callable[[str], object]] = {
        name: lambda text, encoder=encoder: encoder.encode([text], side="query") for name, encoder in encoders.items()
    }
    return query, dict(time_encoding(timed, dict.fromkeys(encoders, texts[:ENCODED])))


def built(options: argparse.Namespace, kind: str, vector_ND: np.ndarray) -> Any:
    """The index of this kind from ``--work``, or a new one."""
    from harness.recipe import AnnSettings
    from harness.vectors.approximate import ApproximateIndex
    from harness.vectors.space import Space

    folder = options.work / f"{kind}-{options.documents}"
    space = Space("benchmark", "", "", "mean", vector_ND.shape[1], True)
    if not folder.exists():
        ids = [f"d{number:08d}" for number in range(len(vector_ND))]
        parameters = {**AnnSettings().parameters(kind), **json.loads(options.parameters).get(kind, {})}
        index = ApproximateIndex.build(vector_ND, ids, kind, parameters, seed=SEED, threads=1)
        index.save(folder, space)
        print(f"{kind}: built in {index.seconds:.0f} s", flush=True)
    return ApproximateIndex.load(folder, space)


def exact_of(
    query: dict[str, np.ndarray], vector_ND: np.ndarray, group_Q: Sequence[str] | None
) -> tuple[dict[str, Any], float]:
    """What exact search finds, and the milliseconds of one query with it (one thread, one query at a time)."""
    import torch

    from harness.evaluation.ann import Asked

    torch.set_num_threads(1)
    document_ND = torch.from_numpy(np.ascontiguousarray(vector_ND))
    asked, taken = {}, []
    for name, query_QD in query.items():
        best = torch.full((len(query_QD), K), -2.0)
        row = torch.zeros((len(query_QD), K), dtype=torch.int64)
        for start in range(0, len(document_ND), BLOCK):
            score = torch.from_numpy(query_QD) @ document_ND[start : start + BLOCK].T
            found = score.topk(min(K, score.shape[1]), dim=1)
            both = torch.cat([best, found.values], dim=1).topk(K, dim=1)
            row = torch.cat([row, found.indices + start], dim=1).gather(1, both.indices)
            best = both.values
        asked[name] = Asked(query_QD, best.numpy(), row.numpy(), group_Q=group_Q)
        for query_D in query_QD[:20]:
            began = time.perf_counter()
            (document_ND @ torch.from_numpy(query_D)).topk(K)
            taken.append(1e3 * (time.perf_counter() - began))
    return asked, float(np.median(taken))


def measured(options: argparse.Namespace) -> dict[str, Any]:
    from harness.evaluation.ann import effort_curves, effort_ratio, told_of_index
    from harness.vectors.approximate import LEAST_DOCUMENTS, TOO_SMALL, default_efforts, saved_bytes

    vector_ND, query, encode_ms = prepared(options)
    indexes = {kind: built(options, kind, vector_ND) for kind in options.indexes}
    if options.build_only:
        return {}
    group_Q = None if options.run is None else run_queries(options.run, options.queries)[1]
    asked, exact_ms = exact_of(query, vector_ND, group_Q)
    real = json.loads((options.work / "real.json").read_text())["documents"]
    enough = len(vector_ND) >= LEAST_DOCUMENTS
    told: dict[str, Any] = {
        "verdict": "measured" if enough else TOO_SMALL, "documents": len(vector_ND),
        "real_documents": min(real, len(vector_ND)), "dimensions": vector_ND.shape[1],
        "queries": len(query[TEACHER]), "k": K, "threads": 1, "encode_p50_ms": encode_ms, "exact_p50_ms": exact_ms,
        "indexes": {},
    }  # fmt: skip
    for kind, index in indexes.items():
        efforts = [effort for effort in default_efforts(kind, index.parameters, K) if effort <= options.most_effort]
        curves = effort_curves(index.at, asked, efforts, K, lambda row_B: np.asarray(vector_ND[row_B]),
                               repeats=options.repeats, timed=options.timed, what=kind)  # fmt: skip
        by_student = {}
        for student in [name for name in curves if name != TEACHER]:
            pair = {name: curves[name] for name in (TEACHER, student)}
            by_student[student] = told_of_index(pair, asked, student, TEACHER, encode_ms, k=K, metric=None,
                                                enough=enough)  # fmt: skip
            often = effort_ratio(curves[student], curves[TEACHER], OFTEN, group_Q) if enough else None
            by_student[student][f"effort_ratio_{OFTEN}"] = often
        told["indexes"][kind] = {
            "built": {"seconds": index.seconds, "bytes": saved_bytes(options.work / f"{kind}-{options.documents}"),
                      "parameters": dict(index.parameters)},
            "systems": {name: {**own, f"recall_{OFTEN}": curves[name].held(OFTEN)}
                        for one in by_student.values() for name, own in one["systems"].items()},
            "students": {name: {key: own for key, own in one.items() if key != "systems"}
                         for name, one in by_student.items()},
        }  # fmt: skip
    return told


# -------------------------------------------------------------------------------------------------- what is shown


def table(told: dict[str, Any]) -> list[str]:
    made_up = told["documents"] - told["real_documents"]
    lines = [
        f"{told['documents']:,} vectors, {made_up:,} of them made up (moved copies), {told['dimensions']} dimensions; "
        f"{told['queries']:,} queries; recall@{told['k']} against each system's own exact search; one thread. "
        f"Exact search of one query: {told['exact_p50_ms']:.1f} ms.",
    ]
    for kind, index in told["indexes"].items():
        systems = list(index["systems"])
        parameters = ", ".join(f"{name} {value}" for name, value in index["built"]["parameters"].items())
        lines += ["", f"**{kind}** ({parameters}; built in {index['built']['seconds']:,.0f} s)", "",
                  "| effort | " + " | ".join(f"{name}: recall | p50 ms | batched q/s" for name in systems) + " |",
                  "|---" * (1 + 3 * len(systems)) + "|"]  # fmt: skip
        for rows in zip(*(index["systems"][name]["curve"] for name in systems), strict=True):
            cells = [f"{row[f'recall@{K}']:.4f} | {row['p50_ms']:.2f} | {row['batched_queries_per_second']:,.0f}"
                     for row in rows]  # fmt: skip
            lines.append(f"| {rows[0]['effort']} | " + " | ".join(cells) + " |")
        lines += ["", *(_concluded(name, index, own) for name, own in index["students"].items())]
    return lines


def _concluded(student: str, index: dict[str, Any], own: dict[str, Any]) -> str:
    told = [_efforts(f"recall {OFTEN}", student, index, f"recall_{OFTEN}", own[f"effort_ratio_{OFTEN}"]),
            _efforts("within 1 %", student, index, "within_1_percent", own["effort_ratio"])]  # fmt: skip
    if own["effort_ratio"] is None:
        told.append("of so few documents: too small to tell")
    if whole := own["end_to_end"]:
        told.append(f"encoder alone {whole['encoder_speed_up']:.2f}x faster, the whole path {whole['speed_up']:.2f}x "
                    f"({whole[TEACHER]['whole_ms']:.2f} ms to {whole['student']['whole_ms']:.2f} ms)")  # fmt: skip
    return f"- {student}: {'; '.join(told)}"


def _efforts(what: str, student: str, index: dict[str, Any], key: str, ratio: dict[str, Any] | None) -> str:
    """The efforts of student and teacher, and their ratio where there is one."""
    needed = [index["systems"][name][key] or "none measured" for name in (student, TEACHER)]
    text = f"{what} at effort {needed[0]}, the teacher at {needed[1]}"
    if ratio is None:
        return text
    value, low, high = ("none" if ratio[part] is None else f"{ratio[part]:.2f}" for part in ("value", "low", "high"))
    return f"{text}: ratio {value} [{low}, {high}], {ratio['verdict']}"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, nargs="?", help="a run's folder, with document vectors, teacher and student")
    parser.add_argument("--random", type=int, default=12_000, help="without RUN: so many random vectors")
    parser.add_argument("--work", type=Path, required=True, help="where vectors, queries and indexes are kept")
    parser.add_argument("--documents", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--indexes", nargs="+", default=["hnsw", "ivf", "ivf-pq"], choices=["hnsw", "ivf", "ivf-pq"])
    parser.add_argument("--students", nargs="+", default=list(STUDENTS)[1:], choices=STUDENTS)
    parser.add_argument("--parameters", default="{}", help='JSON, e.g. {"hnsw": {"neighbours": 16}}')
    parser.add_argument("--most-effort", type=int, default=10_000)
    parser.add_argument("--timed", type=int, default=200, help="queries asked one at a time")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--build-only", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("outputs/measured/ann.json"))
    options = parser.parse_args(arguments)
    if unknown := set(json.loads(options.parameters)) - {"hnsw", "ivf", "ivf-pq"}:
        parser.error(f"--parameters: {', '.join(sorted(unknown))} is no index; allowed: hnsw, ivf, ivf-pq")
    started, told = provenance(), measured(options)
    if told:
        write(options.output, {"provenance": started, **told})
        sys.stdout.write("\n".join(table(told)) + "\n")


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    main()
