"""How vectors are stored: float32, float16, bfloat16, or int8 with a scale for each vector. Read, all are float32.

| dtype    | a row of the .npy file                             | bytes | largest error of a value v          |
|----------|----------------------------------------------------|-------|-------------------------------------|
| float32  | D float32                                          | 4 D   | none                                |
| float16  | D float16, up to 65,504                            | 2 D   | 2^-11 of v (below 2^-14: 2^-25)     |
| bfloat16 | D uint16: upper halves of float32, rounded to even | 2 D   | 2^-8 of v (below 2^-126: 2^-134)    |
| int8     | a float32 ``scale``, D int8 ``code``; v is both's  | D + 4 | 1/254 of the vector's largest value |
|          | product                                            |       |                                     |

int8 is symmetric and has its scale for each vector, not for each dimension: a scale for each dimension must be known
before the first row is written, and one from the first rows cuts off later ones (on vectors of MiniLM an error of 0.1
instead of 0.001), while one from all rows is no better (mean cosine 0.99997 both). It also keeps a row in one place.

Storing what was read gives the same bytes again, so rows can be copied from shard to shard.

Axes: B rows, D dimensions.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np

StoreDtype = Literal["float32", "float16", "bfloat16", "int8"]
STORE_DTYPES: tuple[str, ...] = get_args(StoreDtype)
_LARGEST = 127  # int8 without -128: symmetric


def stored_as(dtype: str, rows: int, dimension: int) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The type and shape of the .npy file of so many rows."""
    assert dtype in STORE_DTYPES, dtype
    if dtype == "int8":
        return np.dtype([("scale", "<f4"), ("code", "i1", (dimension,))]), (rows,)
    return np.dtype("<u2" if dtype == "bfloat16" else dtype), (rows, dimension)


def row_bytes(dtype: str, dimension: int) -> int:
    """The bytes of one vector on disk."""
    stored, shape = stored_as(dtype, 1, dimension)
    return stored.itemsize * int(np.prod(shape))


def pack(vector_BD: np.ndarray, dtype: str) -> np.ndarray:
    """Vectors, any float type, as ``dtype`` has them on disk; what it can't hold is not finite when unpacked."""
    with np.errstate(over="ignore", invalid="ignore"):
        if dtype in ("float32", "float16"):
            return np.ascontiguousarray(vector_BD, dtype=dtype)
        vector_BD = np.ascontiguousarray(vector_BD, dtype=np.float32)
        return _pack_bfloat16(vector_BD) if dtype == "bfloat16" else _pack_int8(vector_BD)


def unpack(stored_B: np.ndarray, dtype: str) -> np.ndarray:
    """Rows as they are on disk as float32 [B, D]; a new array, or the same one where it is float32 in memory."""
    if dtype == "int8":
        with np.errstate(over="ignore", invalid="ignore"):
            return stored_B["code"].astype(np.float32) * stored_B["scale"][:, None]
    if dtype == "bfloat16":
        return (np.asarray(stored_B, dtype=np.uint32) << 16).view(np.float32)
    return np.asarray(stored_B, dtype=np.float32)


def _pack_bfloat16(vector_BD: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, halves to even, as torch rounds; NaN stays NaN."""
    bits_BD = vector_BD.view(np.uint32)
    odd_BD = (bits_BD >> 16) & np.uint32(1)
    upper_BD = ((bits_BD + np.uint32(0x7FFF) + odd_BD) >> 16).astype("<u2")
    return np.where(np.isnan(vector_BD), np.uint16(0x7FC0), upper_BD)


def _pack_int8(vector_BD: np.ndarray) -> np.ndarray:
    """The scale is rounded up to 16 bits: then scale * code is exact in float32, and packs to the same again."""
    dtype, shape = stored_as("int8", *vector_BD.shape)
    stored_B = np.zeros(shape, dtype=dtype)
    scale_B = np.abs(vector_BD).max(axis=1, initial=0.0) / np.float32(_LARGEST)
    scale_B = ((scale_B.view(np.uint32) + np.uint32(0xFF)) & np.uint32(0xFFFFFF00)).view(np.float32)
    code_BD = np.rint(vector_BD / np.where(scale_B > 0, scale_B, 1)[:, None])
    stored_B["scale"] = np.where(np.isfinite(vector_BD).all(axis=1), scale_B, np.nan)
    stored_B["code"] = np.nan_to_num(code_BD, nan=0, posinf=0, neginf=0).astype(np.int8)
    return stored_B
