from __future__ import annotations

import numpy as np
import pytest

from harness.runtime.errors import InputError
from harness.vectors.fits import ridge


def pairs(count: int = 200) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    source_NE, weight_DE, bias_D = random.normal(1, 1, (count, 5)), random.normal(0, 1, (3, 5)), random.normal(0, 1, 3)
    return source_NE, weight_DE, bias_D, source_NE @ weight_DE.T


def test_a_linear_map_is_found_with_and_without_bias() -> None:
    source_NE, weight_DE, bias_D, target_ND = pairs()
    found_DE, none = ridge(source_NE.astype(np.float32), target_ND, 0.0)
    np.testing.assert_allclose(found_DE, weight_DE, atol=1e-6)
    assert none is None
    found_DE, found_D = ridge(source_NE, target_ND + bias_D, 0.0, bias=True)
    np.testing.assert_allclose(found_DE, weight_DE, atol=1e-8)
    np.testing.assert_allclose(found_D, bias_D, atol=1e-8)  # type: ignore[arg-type]


@pytest.mark.parametrize("bias", [False, True])
def test_the_gradient_of_the_penalised_loss_vanishes(bias: bool) -> None:
    source_NE, _, bias_D, target_ND = pairs()
    target_ND = target_ND + bias_D + np.random.default_rng(1).normal(0, 1, target_ND.shape)
    weight_DE, found_D = ridge(source_NE, target_ND, 7.0, bias=bias)
    error_ND = source_NE @ weight_DE.T + (found_D if found_D is not None else 0) - target_ND
    np.testing.assert_allclose(error_ND.T @ source_NE + 7.0 * weight_DE, 0, atol=1e-8)
    if bias:
        np.testing.assert_allclose(error_ND.sum(axis=0), 0, atol=1e-8)


def test_fewer_pairs_than_dimensions_give_the_smallest_map() -> None:
    source_NE, _, _, target_ND = pairs(3)
    weight_DE, _ = ridge(source_NE, target_ND, 0.0)
    np.testing.assert_allclose(weight_DE.T, np.linalg.pinv(source_NE) @ target_ND, atol=1e-6)


def test_no_pairs_or_broken_ones_are_refused() -> None:
    with pytest.raises(InputError, match="0 pairs"):
        ridge(np.empty((0, 3)), np.empty((0, 2)), 1.0)
    with pytest.raises(InputError, match="not finite"):
        ridge(np.full((2, 3), np.nan), np.ones((2, 2)), 1.0)
