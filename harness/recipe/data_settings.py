"""The section ``data`` of a recipe: where texts come from."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from harness.recipe.section import Name, PositiveFloat, Prompts, Section, Share, added


class Texts(Section):
    """A file of unlabelled query texts: one a line (``.txt``), or JSONL / Parquet with ``text`` and ``lang``."""

    path: Name
    language: str | None = None


class Columns(Section):
    """The names of the columns in a pairs file or a Hugging Face data set.

    ``positive`` holds a text or a list of texts. ``negatives`` is a list; under another name, as in data sets of
    triplets (``negatives: negative``), a text stands for one negative. ``context`` is what only the teacher's query
    side may see of a query (``teacher.context``), in a BEIR folder's queries.jsonl too; a column that plays another
    part is no context, and null reads none.
    """

    query: Name = "query"
    positive: Name = "positive"
    negatives: Name = "negatives"
    language: Name = "lang"
    score: Name = "score"
    weight: Name = "weight"
    group: Name = "group"
    context: Name | None = added("context")


class QrelsNames(Section):
    """Which qrels file (without ``.tsv``) plays which part; ``test`` may be absent."""

    train: Name = "train"
    dev: Name = "dev"
    test: str | None = "test"


class StreamSettings(Section):
    """A log too large for memory: Parquet and JSONL files, read as they are needed and tokenised once.

    ``path``: a folder of such files, a glob, a file, or a list of those. ``query``, ``positive``: the columns of a
    query and of a text that answers it; without ``positive`` there are queries alone. ``context``: the column of what
    only the teacher's query side sees (``teacher.context``). ``language``: in every row or in none, or
    ``default_language`` stands in. ``weight``: drawn as if it had so many rows (null: as many as it has). ``prompts``:
    of this data set. ``deduplicate``: of rows equal in all texts and the language only the first counts; texts are
    equal whatever their case and their runs of whitespace. ``skip_bad``: leave unreadable rows out, which are an error
    otherwise.
    """

    path: Name | Annotated[list[Name], Field(min_length=1)]
    query: Name = "query"
    positive: Name | None = None
    context: Name | None = None
    language: Name = "lang"
    default_language: Name | None = None
    weight: PositiveFloat | None = None
    prompts: Prompts = Prompts()
    deduplicate: bool = True
    skip_bad: bool = False


StreamName = Annotated[str, Field(pattern=r"^[a-z0-9-]+$")]


class DataSettings(Section):
    """Where texts come from and how they are split and grouped.

    ``source``: ``emoji`` (built from the installed package), ``beir`` (a folder), ``pairs`` (JSONL or Parquet files of
    query, positive, negatives, lang, score, weight, group) or ``huggingface`` (a data set id, read as pairs).

    ``group``: the field or column whose queries stay in one split and are resampled together. Where none is given,
    those do that share a ``group`` or a ``parallel_id``, directly or through others.

    ``streams``: logs too large for memory, by name; ``one_stream_per_batch``: a batch's rows all come from one of them.
    """

    source: Literal["emoji", "beir", "pairs", "huggingface"]
    path: str | list[Name] | None = None
    dev_path: str | list[Name] | None = None
    dataset: str | None = None
    subset: str | None = None
    dataset_split: Name = "train"
    revision: str | None = None
    columns: Columns = Columns()
    qrels: QrelsNames = QrelsNames()
    hold_out: Share = 0.1
    select_share: Annotated[float, Field(gt=0, lt=1)] = 0.5
    languages: Annotated[list[Name], Field(min_length=1)] | None = None
    group: str | None = None
    search_within: Literal["lang"] | None = None
    equivalent: str | None = None
    unlabelled: list[Texts] = []
    language_temperature: Annotated[float, Field(ge=0, le=1)] = 1.0
    max_unknown_share: Share = 0.02
    on_error: Literal["stop", "skip"] = "stop"
    streams: dict[StreamName, StreamSettings] = added({})
    one_stream_per_batch: bool = added(False)
