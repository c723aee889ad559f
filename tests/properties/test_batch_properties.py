"""Batches: every token list once, shares of languages over the long run, and no positive among the negatives."""

from __future__ import annotations

import tempfile
from collections import Counter
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from builders.vectors import toy_encode, toy_space
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.data.collator import Collator, PairCollator, TokenBatch
from harness.data.records import Documents, Record, normal_text
from harness.data.relevance import Relevance
from harness.data.sampling import EpochSampler, language_shares
from harness.recipe import RefineSettings, TrainingSettings
from harness.training.batches import RefinementBatches, TeacherBatches, TrainingQueries
from harness.training.losses import info_nce
from harness.vectors.writer import write_store

# ----------------------------------------------------------------------------------------------------------- collators


class ListTokenizer:
    """A text is the name of a list of tokens; what stands before the last ``:`` is the prompt."""

    pad_token_id, eos_token_id = 0, None

    def __init__(self, lists: list[list[int]], side: str) -> None:
        self.lists, self.padding_side, self.prompts = lists, side, Counter[str]()

    def __call__(self, texts: list[str], *, max_length: int, **options: Any) -> dict[str, list[list[int]]]:
        assert options == {"truncation": True, "padding": False, "return_attention_mask": False,
                           "return_token_type_ids": False}  # fmt: skip
        parts = [text.rpartition(":") for text in texts]
        self.prompts.update(prompt for prompt, _, _ in parts)
        return {"input_ids": [self.lists[int(name)][:max_length] for _, _, name in parts]}


_token_lists = st.lists(st.lists(st.integers(1, 9), max_size=9), min_size=1, max_size=14)


def _rows(batch: TokenBatch) -> list[list[int]]:
    """The tokens of every row of every chunk, without padding; padding is at one side and nowhere else."""
    rows = []
    for chunk in batch.chunks:
        for tokens, mask in zip(chunk["input_ids"].tolist(), chunk["attention_mask"].tolist(), strict=True):
            rows.append([token for token, real in zip(tokens, mask, strict=True) if real])
            assert all(token == 0 for token, real in zip(tokens, mask, strict=True) if not real)
            assert sum(a != b for a, b in zip(mask, mask[1:], strict=False)) <= 1
    return rows


@settings(max_examples=80)
@given(lists=_token_lists, chunks=st.integers(1, 6), side=st.sampled_from(["left", "right"]),
       prompt=st.sampled_from(["", "p"]), max_length=st.integers(1, 9))  # fmt: skip
def test_every_token_list_appears_once_and_its_order_comes_back(
    lists: list[list[int]], chunks: int, side: str, prompt: str, max_length: int
) -> None:
    tokenizer = ListTokenizer(lists, side)
    collate = Collator(tokenizer, prompt=f"{prompt}:", max_length=max_length, chunks=chunks)  # type: ignore[arg-type]
    batch = collate([str(number) for number in range(len(lists))])
    expected = [tokens[:max_length] or [0] for tokens in lists]  # nothing becomes one token of padding, attended to
    rows = _rows(batch)
    assert sorted(rows) == sorted(expected) and [rows[place] for place in batch.restore.tolist()] == expected
    assert len(batch.chunks) == min(chunks, len(lists)) and tokenizer.prompts == {prompt: len(lists)}
    widths = [chunk["input_ids"].shape[1] for chunk in batch.chunks]
    assert widths == sorted(widths, reverse=True)
    for chunk in batch.chunks:
        edge = chunk["attention_mask"][:, -1 if side == "left" else 0]
        assert edge.all(), "padding is on the tokenizer's side"
    outputs = torch.cat([chunk["input_ids"].sum(dim=1, keepdim=True) for chunk in batch.chunks])[batch.restore]
    assert outputs.squeeze(1).tolist() == [sum(tokens) for tokens in expected]


@settings(max_examples=40)
@given(lists=_token_lists, data=st.data())
def test_pairs_wear_their_sides_prompt_queries_first(lists: list[list[int]], data: st.DataObject) -> None:
    queries = data.draw(st.integers(0, len(lists)))
    tokenizer = ListTokenizer(lists, "right")
    collate = PairCollator(tokenizer, query_prompt="q:", document_prompt="d:", max_length=9,  # type: ignore[arg-type]
                           chunks=data.draw(st.integers(1, 4)))  # fmt: skip
    names = [str(number) for number in range(len(lists))]
    batch = collate(names[:queries], names[queries:])
    assert [_rows(batch)[place] for place in batch.restore.tolist()] == [tokens or [0] for tokens in lists]
    assert +tokenizer.prompts == +Counter(q=queries, d=len(lists) - queries)


# ------------------------------------------------------------------------------------------------------------ sampling


@settings(max_examples=60)
@given(
    counts=st.dictionaries(st.sampled_from(["de", "en", "fr", "ja", "zu"]), st.integers(1, 40), min_size=1),
    temperature=st.floats(0, 1), seed=st.integers(0, 2**32), data=st.data(),
)  # fmt: skip
def test_shares_hold_in_the_long_run_and_every_row_comes_round(
    counts: dict[str, int], temperature: float, seed: int, data: st.DataObject
) -> None:
    languages = [language for language, count in counts.items() for _ in range(count)]
    # A batch no larger than the smallest language never needs others to stand in, so shares are kept to the row.
    batch_size = data.draw(st.integers(1, len(languages) if temperature == 1 else min(counts.values())))
    sampler = EpochSampler(languages, temperature=temperature, seed=seed)
    epochs = 3
    steps = -(-epochs * len(languages) // batch_size)
    batches = [sampler.rows(step, batch_size) for step in range(steps)]
    rows = np.concatenate(batches)[: epochs * len(languages)]
    found = Counter(languages[row] for row in rows)
    for language, share in language_shares(counts, temperature).items():
        assert abs(found[language] - epochs * share * len(languages)) <= epochs, language
        own = [row for row, name in enumerate(languages) if name == language]
        times = Counter(rows.tolist())
        assert max(times[row] for row in own) - min(times[row] for row in own) <= 1, "each once before any again"
    again = EpochSampler(languages, temperature=temperature, seed=seed)
    for step in data.draw(st.lists(st.integers(0, steps - 1), max_size=4)):
        np.testing.assert_array_equal(again.rows(step, batch_size), batches[step])


# --------------------------------------------------------------------------------------------------------------- masks

_document = st.tuples(
    st.sampled_from(["red shoe", "Red  Shoe", "blue shoe", "hat", "coat"]), st.sampled_from(["de", "en"]),
    st.sampled_from(["", "", "k1", "k2"]),
)  # fmt: skip
_question = st.tuples(st.sampled_from(["a", "A ", "b", "c"]), st.sets(st.integers(0, 9), min_size=1, max_size=3))
_TRAINING = TrainingSettings(steps=1, batch_size=4, learning_rate=1e-3)


def _world(rows: list[tuple[str, str, str]], asked: list[tuple[str, set[int]]], within: bool) -> TrainingQueries:
    """Queries and documents; within a language a query asks for documents of its own, as the data step sees to."""
    texts, languages, keys = ([row[column] for row in rows] for column in range(3))
    documents = Documents([f"d{number}" for number in range(len(rows))], texts, languages, keys)
    records = []
    for number, (text, wanted) in enumerate(asked):
        first = min(wanted) % len(rows)
        language = languages[first]
        found = {row % len(rows) for row in wanted}
        found = {row for row in found if not within or languages[row] == language}
        records.append(Record(f"q{number}", text, language, "g", {f"d{row}": 1.0 for row in sorted(found)}))
    return TrainingQueries(records, documents, Relevance(documents, records, within_language=within))


def _is_known(queries: TrainingQueries, record: Record, row: int, within: bool) -> bool:
    """Whether a document answers a query, directly or because query or document stand twice, by the definition."""
    documents = queries.documents
    alike = [other for other in queries.records if normal_text(other.text) == normal_text(record.text)
             and (not within or other.language == record.language)]  # fmt: skip
    same = {documents.row[name] for other in alike for name in other.positives}
    while True:  # equal in text or key to one that is known already
        more = {
            b for b in range(len(documents)) for a in same
            if normal_text(documents.texts[a]) == normal_text(documents.texts[b])
            or (documents.keys[a] and documents.keys[a] == documents.keys[b])
        }  # fmt: skip
        if more <= same:
            return row in same
        same |= more


def _require_right_mask(queries: TrainingQueries, batch: Any, document_N: list[int], within: bool) -> None:
    forbidden_QN, positive_Q = batch["forbidden_QN"], batch["positive_Q"].tolist()
    for at, name in enumerate(batch["ids"]):
        record = queries.records[int(name[1:])]
        positive = document_N[positive_Q[at]]
        assert f"d{positive}" in record.positives, "the column of the positive is that of another document"
        for column, row in enumerate(document_N):
            foreign = within and queries.documents.languages[row] != record.language
            expected = foreign or _is_known(queries, record, row, within)
            assert bool(forbidden_QN[at, column]) == expected, (record, row)
    query_QD = torch.from_numpy(toy_encode([str(name) for name in batch["ids"]])).requires_grad_()
    document_ND = torch.from_numpy(toy_encode([f"document {row}" for row in document_N]))
    loss = info_nce(query_QD, document_ND, batch["positive_Q"], temperature=0.1, forbidden_QN=forbidden_QN)
    loss.backward()  # type: ignore[no-untyped-call]
    assert torch.isfinite(loss) and torch.isfinite(query_QD.grad).all(), "the positive itself is hidden"  # type: ignore[arg-type]


@settings(max_examples=40)
@given(rows=st.lists(_document, min_size=2, max_size=10), asked=st.lists(_question, min_size=4, max_size=7),
       within=st.booleans(), everything=st.booleans(), mined=st.integers(0, 2))  # fmt: skip
def test_refinement_never_takes_a_known_answer_for_a_negative(
    rows: list[tuple[str, str, str]], asked: list[tuple[str, set[int]]], within: bool, everything: bool, mined: int
) -> None:
    queries = _world(rows, asked, within)
    ids = queries.documents.ids
    refine = RefineSettings(training=_TRAINING, candidates="all" if everything else "sampled", sampled=3, mined=mined)
    with tempfile.TemporaryDirectory() as folder:
        order = ids[::-1]  # the store's own, not the data set's
        store = write_store(Path(folder) / "documents", order, order, toy_encode, toy_space())
        batches = RefinementBatches(
            queries, store, None, _no_tokens, refine, seed=1, language_temperature=1.0,  # type: ignore[arg-type]
            mined=[np.arange(len(ids), dtype=np.int64) for _ in asked],
        )  # fmt: skip
        (batch,) = batches(0)
        row_of = {vector.tobytes(): row for row, vector in enumerate(toy_encode(ids))}
        document_N = [row_of[vector.tobytes()] for vector in batch["document_ND"].numpy()]
        assert len(set(document_N)) == len(document_N) and (not everything or len(document_N) == len(ids))
        _require_right_mask(queries, batch, document_N, within)


@settings(max_examples=40)
@given(rows=st.lists(_document, min_size=2, max_size=10), asked=st.lists(_question, min_size=4, max_size=7),
       within=st.booleans(), hard=st.integers(0, 2))  # fmt: skip
def test_the_teacher_never_takes_a_known_answer_for_a_negative(
    rows: list[tuple[str, str, str]], asked: list[tuple[str, set[int]]], within: bool, hard: int
) -> None:
    queries = _world([(f"{text}", *rest) for text, *rest in rows], asked, within)  # type: ignore[misc]
    seen: list[str] = []

    def collate(_: list[str], documents: list[str]) -> Any:
        seen[:] = documents
        return _no_tokens([])

    batches = TeacherBatches(
        queries, collate, _TRAINING, seed=1, language_temperature=1.0, hard_negatives=hard,  # type: ignore[arg-type]
        negatives=[np.arange(len(rows), dtype=np.int64) for _ in asked],
    )  # fmt: skip
    (batch,) = batches(0)
    # Which documents were encoded is told by their texts alone: equal texts are one class, so any of them will do.
    texts = queries.documents.texts
    candidates = sorted(range(len(rows)))
    document_N: list[int] = []
    for text in seen:
        document_N.append(next(row for row in candidates if texts[row] == text and row not in document_N))
    forbidden_QN = batch["forbidden_QN"]
    assert forbidden_QN.shape == (4, len(seen))
    for at, name in enumerate(batch["ids"]):
        record = queries.records[int(name[1:])]
        for column, row in enumerate(document_N):
            if _is_known(queries, record, row, within):
                assert forbidden_QN[at, column], "a known answer is left among the negatives"
        chosen = texts[document_N[int(batch["positive_Q"][at])]]
        assert chosen in [texts[queries.documents.row[i]] for i in record.positives]


def _no_tokens(texts: list[str]) -> Any:
    return SimpleNamespace(chunks=[], restore=torch.empty(0))


def test_these_worlds_hold_duplicates_and_several_positives() -> None:
    """Else the properties above would hold of nothing."""
    queries = _world([("hat", "de", "k1"), ("Hat", "de", ""), ("coat", "en", "k1")], [("a", {0}), ("A", {2})], False)
    assert all(_is_known(queries, record, row, False) for record in queries.records for row in range(3))
    with pytest.raises(AssertionError, match="positive"):
        batch = {"ids": ["q0"], "positive_Q": torch.tensor([1]), "forbidden_QN": torch.ones(1, 3, dtype=torch.bool)}
        _require_right_mask(queries, batch, [0, 1, 2], False)
