"""Closed-form fits between two sets of vectors.

Axes: N pairs, E dimensions of the source, D dimensions of the target.
"""

from __future__ import annotations

import numpy as np

from harness.runtime.errors import InputError, Problem


def ridge(source_NE: np.ndarray, target_ND: np.ndarray, penalty: float) -> np.ndarray:
    """The linear map that minimises ``|source W^T - target|^2 + penalty |W|^2``, solved in float64.

    Args:
        source_NE: float [N, E].
        target_ND: float [N, D].
        penalty: added to the diagonal of the source's E x E second moments (sums over N, not means).

    Returns:
        weight_DE as float64, ready for ``nn.Linear(E, D)``. Without a penalty, the smallest of all best maps.

    Raises:
        InputError: no pairs, or values that are not finite.
    """
    assert source_NE.ndim == target_ND.ndim == 2 and len(source_NE) == len(target_ND) and penalty >= 0
    source_NE, target_ND = source_NE.astype(np.float64), target_ND.astype(np.float64)
    if not len(source_NE) or not np.isfinite(source_NE).all() or not np.isfinite(target_ND).all():
        raise InputError(Problem("no map can be fitted to these vectors",
                                 got=f"{len(source_NE)} pairs" + (", some not finite" if len(source_NE) else ""),
                                 next="look at the texts that both encoders saw"))
    gram_EE, cross_ED = source_NE.T @ source_NE, source_NE.T @ target_ND
    if penalty:
        weight_ED = np.linalg.solve(gram_EE + penalty * np.eye(len(gram_EE)), cross_ED)
    else:
        weight_ED = np.linalg.lstsq(gram_EE, cross_ED, rcond=None)[0]
    return weight_ED.T
