"""What an approximate index is built with, the efforts it is searched at, and how many documents it takes."""

from __future__ import annotations

import math
from collections.abc import Mapping

from harness.runtime.errors import Problem

KINDS = ("hnsw", "ivf", "ivf-pq")
LEAST = 39  # documents for each centroid, below which FAISS warns
FEWEST_BITS = 4
LEAST_DOCUMENTS = 100_000  # below, every index is fast and a graph is shallow: no conclusion is drawn
TOO_SMALL = "too small to tell"

Parameters = Mapping[str, int]


def resolved(kind: str, given: Mapping[str, int | None], documents: int, dimension: int) -> dict[str, int]:
    """The parameters of an index over so many documents, those that are None chosen.

    ``hnsw``: ``neighbours`` (M) and ``ef_construction``. ``ivf``: ``lists``, by default 4 sqrt(N). ``ivf-pq``:
    besides, ``parts`` of ``bits`` each, by default one for every 4 dimensions, and ``rerank``: the first rerank x K
    hits are scored exactly (0: none, and scores are those of the compressed vectors).
    """
    assert kind in KINDS, kind
    found = dict(given)
    if kind != "hnsw" and found.get("lists") is None:
        found["lists"] = max(1, min(round(4 * math.sqrt(documents)), documents // LEAST))
    if kind == "ivf-pq" and found.get("parts") is None:
        found["parts"] = next(n for n in range(max(dimension // 4, 1), 0, -1) if dimension % n == 0)
    return {name: value for name, value in found.items() if value is not None}


def misfits(kind: str, parameters: Parameters, documents: int, dimension: int | None) -> list[Problem]:
    """Why such an index can't be built over so many documents; ``where`` is left to the caller.

    Args:
        documents: of the smallest partition.
        dimension: None where it is not known yet.
    """
    found, centroids = [], {"lists": parameters.get("lists", 0)}
    if kind == "ivf-pq":
        centroids["bits"] = 2 ** parameters["bits"]
    for name, count in centroids.items():
        if count * LEAST > documents:
            most = documents // LEAST if name == "lists" else int(math.log2(max(documents // LEAST, 1)))
            lower = f"lower {name} to {most}, or " if most >= (1 if name == "lists" else FEWEST_BITS) else ""
            found.append(
                Problem(f"too few documents to train {count:,} centroids", got=f"{documents:,} documents",
                        allowed=f"{count * LEAST:,} documents: {LEAST} for each centroid",
                        next=f"{lower}take {kind} out of bench.ann.indexes")
            )  # fmt: skip
    if "parts" in parameters and dimension is not None and dimension % parameters["parts"]:
        found.append(Problem("vectors can't be split into so many equal parts", got=str(parameters["parts"]),
                             allowed=f"a divisor of {dimension}", next="choose one, or leave it to null"))  # fmt: skip
    return found


def default_efforts(kind: str, parameters: Parameters, k: int) -> list[int]:
    """Efforts in steps of the square root of 2: efSearch from ``k`` to 2,048, nprobe from 1 to all lists."""
    first, last = (k, max(2_048, k)) if kind == "hnsw" else (1, parameters["lists"])
    steps = math.floor(2 * math.log2(last / first)) + 1
    return sorted({*(min(last, round(first * 2 ** (step / 2))) for step in range(steps)), last})
