"""The epoch sampler: shares, coverage, no doubles, and nothing but (seed, step) decides."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.sampling import EpochSampler, language_shares

_counts = st.dictionaries(st.sampled_from(["de", "en", "fr", "ja"]), st.integers(1, 40), min_size=1)
_temperatures = st.sampled_from([0.0, 0.3, 0.7, 1.0])


def _rows(counts: dict[str, int]) -> list[str]:
    languages = [language for language, count in counts.items() for _ in range(count)]
    np.random.default_rng(0).shuffle(languages)
    return languages


def test_shares() -> None:
    counts = {"en": 900, "de": 100, "xx": 0}
    assert language_shares(counts, 1.0) == pytest.approx({"en": 0.9, "de": 0.1})
    assert language_shares(counts, 0.5) == pytest.approx({"en": 0.75, "de": 0.25})
    assert language_shares(counts, 0.0) == pytest.approx({"en": 0.5, "de": 0.5})


@settings(max_examples=60, deadline=None)
@given(counts=_counts, temperature=_temperatures, seed=st.integers(0, 9))
def test_every_epoch_has_its_shares_and_no_row_waits_for_another(
    counts: dict[str, int], temperature: float, seed: int
) -> None:
    languages = _rows(counts)
    sampler = EpochSampler(languages, temperature=temperature, seed=seed)
    shares = language_shares(counts, temperature)
    seen: Counter[int] = Counter()
    for epoch in range(3):
        steps = range(epoch * len(languages), (epoch + 1) * len(languages))
        rows = [int(sampler.rows(step, 1)[0]) for step in steps]
        found = Counter(languages[row] for row in rows)
        assert all(abs(found[language] - share * len(languages)) < 1 for language, share in shares.items())
        seen.update(rows)
        for language in counts:
            times = [seen[row] for row, name in enumerate(languages) if name == language]
            assert max(times) - min(times) <= 1
    if temperature == 1.0:
        assert set(seen.values()) == {3} and len(seen) == len(languages)


@settings(max_examples=80, deadline=None)
@given(counts=_counts, temperature=_temperatures, seed=st.integers(0, 9), share=st.floats(0, 1))
def test_no_row_twice_in_a_batch(counts: dict[str, int], temperature: float, seed: int, share: float) -> None:
    languages = _rows(counts)
    batch_size = max(1, round(share * len(languages)))
    sampler = EpochSampler(languages, temperature=temperature, seed=seed)
    for step in range(12):
        rows = sampler.rows(step, batch_size)
        assert rows.dtype == np.int64 and rows.shape == (batch_size,)
        assert len(set(rows.tolist())) == batch_size and rows.min() >= 0 and rows.max() < len(languages)


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_only_seed_and_step_decide(temperature: float) -> None:
    languages = _rows({"de": 30, "en": 71})
    sampler = EpochSampler(languages, temperature=temperature, seed=3)
    inorder = [sampler.rows(step, 16) for step in range(30)]
    resumed = EpochSampler(languages, temperature=temperature, seed=3)
    for step in (29, 3, 17, 3, 18):
        np.testing.assert_array_equal(resumed.rows(step, 16), inorder[step])
    resumed.rows(5, 7)  # another batch size in between
    np.testing.assert_array_equal(resumed.rows(20, 16), inorder[20])
    other = EpochSampler(languages, temperature=temperature, seed=4)
    assert not np.array_equal(other.rows(0, 16), inorder[0])


def test_epochs_differ_and_are_shuffled() -> None:
    sampler = EpochSampler(["en"] * 200, temperature=1.0, seed=0)
    epochs = [np.concatenate([sampler.rows(step, 50) for step in range(4 * n, 4 * n + 4)]) for n in range(3)]
    for epoch in epochs:
        assert sorted(epoch) == list(range(200))
        assert abs(np.corrcoef(epoch, np.arange(200))[0, 1]) < 0.3
    assert np.mean(epochs[0] == epochs[1]) < 0.1
    together = [{frozenset(batch) for batch in epoch.reshape(4, 50).tolist()} for epoch in epochs]
    assert together[0].isdisjoint(together[1]), "batches hold other company in the next epoch"


def test_a_batch_larger_than_the_data_repeats_evenly() -> None:
    rows = EpochSampler(["en"] * 5, temperature=1.0, seed=0).rows(7, 12)
    assert sorted(Counter(rows.tolist()).values()) == [2, 2, 2, 3, 3]


def test_a_large_batch_of_few_rows_keeps_every_row_once_an_epoch() -> None:
    sampler = EpochSampler(["en"] * 10 + ["de"], temperature=1.0, seed=1)
    rows = np.concatenate([sampler.rows(step, 8) for step in range(11)])
    assert all(Counter(rows.tolist())[row] == 8 for row in range(11))
