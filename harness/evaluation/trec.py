"""Stored evaluations as TREC run files and judgments as qrels, so that trec_eval finds the numbers that we found.

trec_eval orders a query's documents by their scores as 32-bit floats, and equal ones by descending id; we order equal
ones by ascending id. So a score that does not fall from one rank to the next is written as the next lower float: the
order is ours, and no score is off by more than its ties. A query without any hit has no line: trec_eval counts it as
zero with ``-c``, as we do.

Axes: Q queries, K ranks.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from harness.data.records import Record
from harness.evaluation.per_query import PerQuery
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import atomic_file

_SPACE = re.compile(r"\s")  # what separates columns, in C or in Python


def write_run(path: Path, result: PerQuery, tag: str) -> None:
    """Write ``query Q0 document rank score tag``, a line a hit, ranks from 1.

    Raises:
        InputError: two ids are one when their whitespace is escaped.
    """
    name = column_names([*result.ids, *(hit for hits in result.hits for hit in hits)], str(path))
    score_QK = falling(result.scores)
    with atomic_file(path, "w") as stream:
        for query, hits, score_K in zip(result.ids, result.hits, score_QK.tolist(), strict=True):
            asked = name.get(query, query)
            stream.writelines(
                f"{asked} Q0 {name.get(hit, hit)} {rank} {score:.9g} {tag}\n"
                for rank, (hit, score) in enumerate(zip(hits, score_K, strict=False), 1)
            )


def write_qrels(path: Path, records: Iterable[Record]) -> bool:
    """Write ``query 0 document grade``, a line a judgment; whether it was written.

    trec_eval reads whole numbers only: nothing is written where a grade is not one.

    Raises:
        InputError: two ids are one when their whitespace is escaped.
    """
    records = list(records)
    if not all(grade.is_integer() for record in records for grade in record.positives.values()):
        return False
    judged = [(record.id, {**record.positives, **dict.fromkeys(record.negatives, 0.0)}) for record in records]
    name = column_names([i for query, grades in judged for i in (query, *grades)], str(path))
    with atomic_file(path, "w") as stream:
        for query, grades in judged:
            asked = name.get(query, query)
            stream.writelines(f"{asked} 0 {name.get(i, i)} {int(grade)}\n" for i, grade in grades.items())
    return True


def column_names(ids: Sequence[str], where: str) -> Mapping[str, str]:
    """The ids that hold whitespace, each with the name that stands for it: whitespace percent-encoded.

    Raises:
        InputError: such a name is another id, too.
    """
    distinct = set(ids)
    names = {id_: _SPACE.sub(lambda space: quote(space[0]), id_) for id_ in distinct if _SPACE.search(id_)}
    taken = sorted(id_ for id_, name in names.items() if name in distinct)
    if taken:
        raise InputError(
            Problem("TREC files have no whitespace in ids, and these are other ids when it is escaped", where=where,
                    got=", ".join(f"{id_!r} as {names[id_]!r}" for id_ in taken[:5]), next="rename them in the data")
        )  # fmt: skip
    return names


def falling(score_QK: NDArray[np.float32]) -> NDArray[np.float32]:
    """The scores, each at least one float below the one before it; -inf stays."""
    falling_QK = np.array(score_QK, dtype=np.float32)
    for rank in range(1, falling_QK.shape[1]):
        below_Q = np.nextafter(falling_QK[:, rank - 1], np.float32(-np.inf))
        falling_QK[:, rank] = np.minimum(falling_QK[:, rank], below_Q)
    return falling_QK
