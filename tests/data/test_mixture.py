"""Mixing logs: shares, one source a batch, no relevant texts in one batch, and nothing but (seed, step) decides."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders.logs import collator, log, mixture, settings, write, write_logs
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from harness.data.dedupe import Hashes, joined_hashes, text_hash, text_hashes
from harness.data.mixture import Mixture, MixtureSource, strata_of
from harness.data.order import BlockOrder
from harness.data.sampling import Ints
from harness.data.stream import TokenBatches
from harness.data.token_cache import TokenCache
from harness.data.token_writer import build_token_cache
from harness.runtime.errors import InputError, RunError


class Numbers:
    """A stream of so many rows; rows that leave the same remainder are relevant to each other."""

    def __init__(self, count: int, *, remainders: int = 2**31, seed: int = 0, window: int = 4) -> None:
        sizes = [min(16, count - start) for start in range(0, count, 16)]
        self.order = BlockOrder(sizes, window=window, seed=[seed])
        self._remainders = remainders

    def keys(self, row_C: Ints) -> Hashes:
        return (row_C % self._remainders + 1).astype(np.uint64)[:, None]


def _shares(temperature: float, *sources: tuple[float | None, dict[str, int]]) -> dict[tuple[str, str], float]:
    made = [
        MixtureSource(str(number), {name: Numbers(rows) for name, rows in counts.items()}, weight)
        for number, (weight, counts) in enumerate(sources)
    ]
    return {(stratum.source, stratum.language): stratum.share for stratum in strata_of(made, temperature)}


def test_shares() -> None:
    one, two = {"en": 90, "de": 10}, {"en": 50, "de": 50}
    approx = pytest.approx
    assert _shares(1.0, (None, one)) == approx({("0", "en"): 0.9, ("0", "de"): 0.1})
    assert _shares(0.0, (None, one)) == approx({("0", "en"): 0.5, ("0", "de"): 0.5})
    assert _shares(0.5, (None, one)) == approx({("0", "en"): 0.75, ("0", "de"): 0.25})
    whole = _shares(1.0, (3.0, one), (1.0, two))
    assert whole == approx({("0", "en"): 0.675, ("0", "de"): 0.075, ("1", "en"): 0.125, ("1", "de"): 0.125})
    # Across sources: English and German get the same, and within each the sources keep their proportions.
    even = _shares(0.0, (3.0, one), (1.0, two))
    assert even["0", "en"] + even["1", "en"] == approx(0.5)
    assert even["0", "de"] / even["1", "de"] == approx(0.075 / 0.125)


def test_draws_have_the_shares_and_show_every_row_once_a_pass() -> None:
    sources = [
        MixtureSource("a", {"en": Numbers(300), "de": Numbers(100, seed=1)}, 1.0),
        MixtureSource("b", {"en": Numbers(200)}, 3.0),
    ]
    mixed = Mixture(sources, batch_size=10, seed=5, disjoint=False)
    draws = [mixed.draw(step) for step in range(400)]
    stratum = np.concatenate([draw.stratum_B for draw in draws])
    row = np.concatenate([draw.row_B for draw in draws])
    assert np.bincount(stratum) / 4000 == pytest.approx([0.1875, 0.0625, 0.75], abs=0.02)
    for number, count in enumerate((300, 100, 200)):
        shown = row[stratum == number]
        for start in range(0, len(shown) - count + 1, count):
            assert len(set(shown[start : start + count].tolist())) == count


def test_one_source_a_batch() -> None:
    sources = [
        MixtureSource("a", {"en": Numbers(300), "de": Numbers(100)}, 1.0), MixtureSource("b", {"en": Numbers(200)}, 2.0)
    ]  # fmt: skip
    mixed = Mixture(sources, batch_size=10, seed=5, one_source_per_batch=True)
    names: Counter[str] = Counter()
    languages: Counter[str] = Counter()
    seen: list[int] = []
    for step in range(300):
        draw = mixed.draw(step)
        drawn = [mixed.strata[number] for number in draw.stratum_B]
        (name,) = {stratum.source for stratum in drawn}
        names[name] += 1
        languages.update(stratum.language for stratum in drawn if stratum.source == "a")
        seen += draw.row_B.tolist() if name == "b" else []
    assert names["b"] / 300 == pytest.approx(2 / 3, abs=0.1)
    assert languages["de"] / languages.total() == pytest.approx(0.25, abs=0.05)
    assert len(set(seen[:200])) == 200  # a source's own rows, one pass, though the other had its turns between


@hypothesis_settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 5), steps=st.permutations(range(20)), one=st.booleans())
def test_a_step_is_a_function_of_seed_and_step(seed: int, steps: list[int], one: bool) -> None:
    def make() -> Mixture:
        sources = [MixtureSource("a", {"en": Numbers(90, remainders=30)}), MixtureSource("b", {"de": Numbers(50)})]
        return Mixture(sources, batch_size=6, seed=seed, one_source_per_batch=one)

    first, second = make(), make()
    straight = {step: first.draw(step) for step in range(20)}
    for step in steps:
        draw = second.draw(step)
        assert np.array_equal(draw.row_B, straight[step].row_B)
        assert np.array_equal(draw.stratum_B, straight[step].stratum_B)


def test_no_two_rows_of_a_batch_share_a_key() -> None:
    stream = Numbers(600, remainders=24)
    plain = Mixture([MixtureSource("a", {"en": stream})], batch_size=12, seed=1, disjoint=False)
    mixed = Mixture([MixtureSource("a", {"en": stream})], batch_size=12, seed=1)
    changed = 0
    for step in range(100):
        draw, before = mixed.draw(step), plain.draw(step)
        keys = stream.keys(draw.row_B)[:, 0]
        assert len(set(keys.tolist())) == 12
        kept = draw.row_B == before.row_B
        changed += int((~kept).sum())
        # only those make room whose key stands before them
        seen: set[int] = set()
        for key, same in zip(stream.keys(before.row_B)[:, 0].tolist(), kept.tolist(), strict=True):
            assert same == (key not in seen)
            seen.add(key)
    assert changed > 100


def test_too_few_keys_for_a_batch_is_an_error() -> None:
    mixed = Mixture([MixtureSource("a", {"en": Numbers(600, remainders=5)})], batch_size=12, seed=1)
    with pytest.raises(RunError, match="7 rows too many"):
        mixed.draw(0)


def test_wrong_sources_are_told_at_once() -> None:
    sources = [
        MixtureSource("a", {}), MixtureSource("a", {"en": Numbers(3)}, 0.0),
        MixtureSource("c", {"en": Numbers(3)}, float("nan")),
    ]  # fmt: skip
    with pytest.raises(InputError) as found:
        Mixture(sources, batch_size=2, seed=0)
    assert len(found.value.problems) == 4


# --------------------------------------------------------------------------------------------------- with a real cache


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> TokenCache:
    folder = tmp_path_factory.mktemp("mixture")
    return build_token_cache(folder / "cache", write_logs(folder / "logs", log(900)), settings())


def test_batches_hold_the_tokens_of_the_texts_and_no_common_positive(cache: TokenCache) -> None:
    rows = log(900)
    files = [[rows[row] for row in part] for part in np.array_split(np.arange(len(rows)), 5)]
    batches = TokenBatches(mixture(cache, batch_size=24, temperature=0.5), {"text": collator()})
    plain = TokenBatches(mixture(cache, batch_size=24, temperature=0.5, disjoint=False), {"text": collator()})
    repeats = 0
    for step in (0, 7, 1000, 10**7):
        batch = batches(step)
        drawn = [files[file][row] for _, file, row in batch.sources]
        expected = collator()([row["text"] for row in drawn])
        for got, wanted in zip(batch.tokens["text"].chunks, expected.chunks, strict=True):
            assert torch.equal(got["input_ids"], wanted["input_ids"])
            assert torch.equal(got["attention_mask"], wanted["attention_mask"])
        assert torch.equal(batch.tokens["text"].restore, expected.restore)
        assert [row["lang"] for row in drawn] == batch.languages
        assert len({row["positive"] for row in drawn}) == len({row["text"] for row in drawn}) == 24
        before = [files[file][row]["positive"] for _, file, row in plain(step).sources]
        repeats += 24 - len(set(before))
    assert repeats > 0, "without the rule, batches do hold a positive twice"


def test_a_batch_that_cannot_be_shared_out_is_refused(cache: TokenCache) -> None:
    with pytest.raises(InputError, match="shared out equally"):
        TokenBatches(mixture(cache, batch_size=9), {"text": collator()}, processes=2)


# ------------------------------------------------------------------------------------------------------------- hashes


def test_hashes() -> None:
    assert text_hash("Red  SHOE") == text_hash("red shoe") != text_hash("red shoes")
    assert text_hashes(["a", "", None]).tolist()[1:] == [0, 0]
    one, two = text_hashes(["a", "b"]), text_hashes(["b", "a"])
    joined = joined_hashes([one, two])
    assert joined[0] != joined[1] and joined_hashes([one, one])[0] != joined_hashes([one, two])[0]


def test_pairs_with_a_group_column(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [{"text": f"query {n}", "positive": f"p {n}", "group": n % 9} for n in range(90)]
    path = write(tmp_path / "log.parquet", rows)
    cache = build_token_cache(tmp_path / "cache", [path], settings(keys=("positive", "group")))
    batches = TokenBatches(mixture(cache, batch_size=9), {"text": collator()})
    assert {row % 9 for _, _, row in batches(3).sources} == set(range(9))
