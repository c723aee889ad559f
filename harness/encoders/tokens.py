"""Tokenizers without torch: opened from a folder, made to lower-case, asked what share of a text they don't know."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.runtime.errors import InputError, Problem

if TYPE_CHECKING:
    from tokenizers import Tokenizer


def read_tokenizer(folder: str | Path) -> Tokenizer:
    """Open a model folder's ``tokenizer.json``, with truncation and padding off.

    Raises:
        InputError: the folder has none, or it can't be read.
    """
    from tokenizers import Tokenizer

    path = Path(folder) / "tokenizer.json"
    if not path.is_file():
        raise InputError(Problem("the model folder has no tokenizer.json", where=str(folder),
                                 next="open the tokenizer with transformers and save it again"))
    try:
        tokenizer = Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises bare Exception
        raise InputError(Problem("not readable as a tokenizer", where=str(path), got=str(error),
                                 next="get the file again, or save the tokenizer again with transformers")) from error
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def lower_first(tokenizer: Tokenizer) -> None:
    """As sentence-transformers reads ``do_lower_case``: lower-case first, unless the tokenizer does already."""
    from tokenizers.normalizers import Lowercase, Sequence

    state = json.dumps(json.loads(tokenizer.to_str())["normalizer"] or {}, separators=(",", ":"))
    if '"lowercase":true' not in state and '"type":"Lowercase"' not in state:
        tokenizer.normalizer = Sequence([Lowercase()] + ([tokenizer.normalizer] if tokenizer.normalizer else []))


def unknown_share(tokenizer: Any, texts: Sequence[str]) -> float:
    """The share of unknown tokens among the texts' own tokens (special tokens left out); 0 for byte-level tokenizers.

    Args:
        tokenizer: a ``tokenizers.Tokenizer`` or a fast tokenizer of transformers.
        texts: without prompts; an empty sequence has share 0.
    """
    tokenizer = getattr(tokenizer, "backend_tokenizer", tokenizer)
    if _unknown_id(tokenizer) is None or not len(texts):
        return 0.0
    token_N, unknown_N = token_counts(tokenizer, texts)
    return float(unknown_N.sum() / token_N.sum()) if token_N.any() else 0.0


def token_counts(tokenizer: Tokenizer, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """int64_N, int64_N: how many tokens each text has, special ones left out, and how many of them are unknown."""
    unknown = _unknown_id(tokenizer)
    if tokenizer.padding is not None or tokenizer.truncation is not None:
        tokenizer = type(tokenizer).from_str(tokenizer.to_str())
        tokenizer.no_padding()
        tokenizer.no_truncation()
    ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts), add_special_tokens=False)]
    counts = ([len(row) for row in ids], [0 if unknown is None else row.count(unknown) for row in ids])
    return np.array(counts[0], dtype=np.int64), np.array(counts[1], dtype=np.int64)


def _unknown_id(tokenizer: Tokenizer) -> int | None:
    token = getattr(tokenizer.model, "unk_token", None)
    if token is not None:
        return tokenizer.token_to_id(token)
    if type(tokenizer.model).__name__ == "Unigram":  # names its unknown piece by number, in its JSON only
        return json.loads(tokenizer.to_str())["model"]["unk_id"]
    return None
