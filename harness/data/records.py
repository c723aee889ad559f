"""What the other rooms see of the data: queries, documents, splits."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property

UNKNOWN_LANGUAGE = "und"
RESERVED = ("all", "all languages", "macro", "micro", "worst", "weighted")  # summary rows: no language may be named so
_SELECTOR = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
DOTTED_I = "i\u0307"  # what case folding makes of the Turkish capital


def normal_text(text: str) -> str:
    """The form in which two texts count as the same: case folded, runs of whitespace as one space."""
    return " ".join(text.casefold().split())


def asked_text(text: str) -> str:
    """The form in which two queries ask the same: ``normal_text`` whatever the Unicode form and invisible characters.

    NFKC, case folded, and NFKC again, without format characters (category Cf) and variation selectors: much like
    NFKC_Casefold (The Unicode Standard, 3.13), but for joiners, which may tell words apart in few scripts, and the dot
    that case folding leaves of a Turkish capital. Equal normal texts ask the same.
    """
    if text.isascii():
        return normal_text(text)
    if not text.isprintable():
        text = "".join(char for char in text if unicodedata.category(char) != "Cf")
    text = unicodedata.normalize("NFKC", _SELECTOR.sub("", text)).casefold()
    return " ".join(unicodedata.normalize("NFKC", text).replace(DOTTED_I, "i").split())


@dataclass(frozen=True, slots=True)
class Record:
    """One query.

    Args:
        positives: document id -> grade, every grade above 0; never empty.
        negatives: ids of documents judged not relevant, or given as negatives; none of them is a positive.
        group: queries of one group stay in one split and are resampled together.
        weight: how much the query counts in a loss.
        context: what only the teacher's query side may see (``in_context``); ``""`` for none.
    """

    id: str
    text: str
    language: str
    group: str
    positives: dict[str, float]
    negatives: tuple[str, ...] = ()
    weight: float = 1.0
    context: str = ""


_PLACE = re.compile(r"\{(query|context)\}")


def in_context(query: str, context: str, template: str | None) -> str:
    """What the teacher's query side reads: both as ``template`` says, or the plain query where there is no context."""
    if not template or not context:
        return query
    return _PLACE.sub(lambda place: query if place[1] == "query" else context, template)


def has_scores(records: Iterable[Record]) -> bool:
    """Whether any query has judged documents of different scores; a judged negative's score is 0."""
    return any(record.negatives or len(set(record.positives.values())) > 1 for record in records)


@dataclass(frozen=True)
class Documents:
    """Columns of equal length; ``keys`` holds the value of ``data.equivalent``, ``""`` where there is none."""

    ids: list[str] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    languages: list[str] = field(default_factory=list)
    keys: list[str] = field(default_factory=list)

    @cached_property
    def row(self) -> dict[str, int]:
        """Document id -> row, computed once: use it when the columns are complete."""
        return {id_: row for row, id_ in enumerate(self.ids)}

    def __len__(self) -> int:
        return len(self.ids)


@dataclass(frozen=True)
class Dataset:
    """A prepared folder in memory.

    Args:
        splits: ``train`` (empty for evaluation-only data), ``select``, ``report``, and ``test`` if the data has one.
        unlabelled: (text, language) of query texts without judgments.
        search_within: a query searches only the documents of its language.
        sha256: of the prepared folder's content.
    """

    documents: Documents
    splits: dict[str, list[Record]]
    unlabelled: list[tuple[str, str]]
    search_within: bool
    sha256: str
