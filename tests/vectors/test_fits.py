from __future__ import annotations

import numpy as np
import pytest

from harness.runtime.errors import InputError
from harness.vectors.fits import ridge


def pairs(count: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    source_NE, weight_DE = random.normal(1, 1, (count, 5)), random.normal(0, 1, (3, 5))
    return source_NE, weight_DE, source_NE @ weight_DE.T


def test_a_linear_map_is_found() -> None:
    source_NE, weight_DE, target_ND = pairs()
    np.testing.assert_allclose(ridge(source_NE.astype(np.float32), target_ND, 0.0), weight_DE, atol=1e-6)


def test_the_gradient_of_the_penalised_loss_vanishes() -> None:
    source_NE, _, target_ND = pairs()
    target_ND = target_ND + np.random.default_rng(1).normal(1, 1, target_ND.shape)
    weight_DE = ridge(source_NE, target_ND, 7.0)
    error_ND = source_NE @ weight_DE.T - target_ND
    np.testing.assert_allclose(error_ND.T @ source_NE + 7.0 * weight_DE, 0, atol=1e-8)


def test_fewer_pairs_than_dimensions_give_the_smallest_map() -> None:
    source_NE, _, target_ND = pairs(3)
    weight_DE = ridge(source_NE, target_ND, 0.0)
    np.testing.assert_allclose(weight_DE.T, np.linalg.pinv(source_NE) @ target_ND, atol=1e-6)


def test_no_pairs_or_broken_ones_are_refused() -> None:
    with pytest.raises(InputError, match="0 pairs"):
        ridge(np.empty((0, 3)), np.empty((0, 2)), 1.0)
    with pytest.raises(InputError, match="not finite"):
        ridge(np.full((2, 3), np.nan), np.ones((2, 2)), 1.0)
