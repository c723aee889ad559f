"""A Hugging Face data set as rows; a hub that can't be reached is told within seconds, or replaced by the cache."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from harness.data.reading import Reading
from harness.recipe import DataSettings
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import logger

PATIENCE_SECONDS = 5.0  # for the one request that asks whether the hub is there


def hub_rows(
    settings: DataSettings, columns: Mapping[str, str], reading: Reading
) -> tuple[str, Iterator[tuple[int, dict[str, Any]]]]:
    """The numbered rows of ``data.dataset``, with the name under which its bad lines are reported.

    Raises:
        InputError: the data set can't be loaded, or lacks a column of queries or positives.
    """
    import datasets

    where, dataset = f"data.dataset: {settings.dataset}", settings.dataset or ""
    unreachable = "" if Path(dataset).exists() else _unreachable()
    if unreachable:
        logger.info("  data: %s; looking for %s in the cache", unreachable, dataset)
    try:
        with _offline() if unreachable else contextlib.nullcontext():
            table = datasets.load_dataset(
                dataset, settings.subset, split=settings.dataset_split, revision=settings.revision
            )
    except Exception as error:  # the library raises what its file systems, parsers and the network raise
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise InputError(
            Problem("the data set can't be loaded", where=where,
                    got=unreachable or f"{type(error).__name__}: {reason}",
                    next="check data.dataset, data.subset, data.dataset_split and the network, or download it and use "
                    "data.source: pairs")
        ) from None  # fmt: skip
    missing = [columns[name] for name in ("query", "positive") if columns[name] not in table.column_names]
    if missing:
        raise InputError(
            Problem(f"no column {', '.join(missing)}", where=where, got=", ".join(table.column_names),
                    next="name the columns in data.columns")
        )  # fmt: skip
    name = f"{dataset}[{settings.dataset_split}]"
    return name, reading.table(name, table, len(table))


def _unreachable() -> str:
    """Why the hub can't be reached, "" if it can: the libraries would try again for half a minute, and say so."""
    from huggingface_hub import constants
    from huggingface_hub.utils import get_session

    if constants.is_offline_mode():
        return ""  # the libraries ask the cache alone, and at once
    try:
        get_session().head(constants.ENDPOINT, timeout=PATIENCE_SECONDS)
    except Exception as error:  # whatever its transport raises
        return f"{constants.ENDPOINT} can't be reached ({str(error).strip() or type(error).__name__})"
    return ""


@contextlib.contextmanager
def _offline() -> Iterator[None]:
    """The libraries ask their caches alone."""
    import datasets
    from huggingface_hub import constants

    before = datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE
    datasets.config.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        datasets.config.HF_HUB_OFFLINE, constants.HF_HUB_OFFLINE = before
