"""Distil a large embedding model into a small query encoder that searches the large model's own, unchanged index."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pathlib import Path

    from harness.engines.load import QueryEncoder

__version__ = "0.1.0"


def load(folder: str | Path, **options: Any) -> QueryEncoder:
    """The fastest engine of an exported folder on this machine; ``harness.engines.load.load`` says all of it.

    Measured at first use, in a second or two, and kept; ``refresh=True`` measures again; ``.choice.why`` says why.

        vectors = harness.load("outputs/mine/export/student").encode(["red shoes", "rote Schuhe"])
    """
    from harness.engines.load import load as load_engine  # late: importing the package alone imports nothing

    return load_engine(folder, **options)
