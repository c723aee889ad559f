from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from builders.training import STAGES, Toy, stage_parts, toy_dataset, toy_negatives, toy_training, training_queries
from torch import Tensor

from harness.data.records import Dataset, Record
from harness.encoders.encoder import Encoder
from harness.runtime.errors import InputError
from harness.training.batches import AlignmentBatches, RefinementBatches, TeacherBatches, pick_negatives

STEPS = range(12)
READER = "qwen3"  # its tokens read back as the very text, capitals included


def texts_of(encoder: Encoder, batch: Any) -> list[str]:
    """The texts of a batch in its order, queries first and without the prompt that each of them must have."""
    tokens = [
        ids[mask.bool()]
        for chunk in batch["chunks"]
        for ids, mask in zip(chunk["input_ids"], chunk["attention_mask"], strict=True)
    ]
    texts = [encoder.tokenizer.decode(tokens[place], skip_special_tokens=True) for place in batch["restore"].tolist()]
    prompt, queries = encoder.prompts["query"], len(batch["ids"])
    assert prompt and all(text.startswith(prompt) for text in texts[:queries])
    return [text.removeprefix(prompt) for text in texts[:queries]] + texts[queries:]


def assert_equal_batches(ours: Any, theirs: Any) -> None:
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if name == "chunks":
            for one, other in zip(value, theirs["chunks"], strict=True):
                assert all(one[key].equal(other[key]) for key in ("input_ids", "attention_mask"))
        elif isinstance(value, Tensor):
            assert value.equal(theirs[name]), name
        else:
            assert value == theirs[name], name


def within(toy: Toy) -> Toy:
    """The same data, where a query searches its own language only."""
    return dataclasses.replace(toy, dataset=toy_dataset(search_within=True))


def negatives_by_hand(dataset: Dataset, query: Record, row: int) -> bool:
    """Whether a document may be a negative of a query, by the rules one by one."""
    documents, records = dataset.documents, dataset.splits["train"]
    same = [r for r in records if r.text.casefold() == query.text.casefold()]
    if dataset.search_within:
        same = [r for r in same if r.language == query.language]
        if documents.languages[row] != query.language:
            return False
    for known in {id_ for record in same for id_ in record.positives}:
        at = documents.row[known]
        same_text = documents.texts[at].casefold() == documents.texts[row].casefold()
        if same_text or (documents.keys[at] and documents.keys[at] == documents.keys[row]):
            return False
    return True


# -------------------------------------------------------------------------------------------------- every stage


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_is_a_function_of_seed_and_step(toy: Toy, stage: str) -> None:
    _, batches = stage_parts(stage, toy, toy.encoder(READER), toy_training(accumulate=2))
    first = [batches(step) for step in range(6)]
    _, afresh = stage_parts(stage, toy, toy.encoder(READER), toy_training(accumulate=2))
    for step in (4, 0, 5, 4):  # in any order, again and again
        for micro, other in zip(afresh(step), first[step], strict=True):
            assert_equal_batches(micro, other)
    assert first[0][0]["ids"] != first[1][0]["ids"]


@pytest.mark.parametrize("stage", STAGES)
def test_another_seed_gives_other_batches(toy: Toy, stage: str) -> None:
    one, other = (stage_parts(stage, toy, toy.encoder(READER), toy_training(), seed=seed)[1] for seed in (5, 6))
    assert one(0)[0]["ids"] != other(0)[0]["ids"]


@pytest.mark.parametrize("stage", STAGES)
def test_accumulation_splits_the_same_queries_into_equal_parts(toy: Toy, stage: str) -> None:
    (whole,) = stage_parts(stage, toy, toy.encoder(READER), toy_training(batch_size=12))[1](3)
    parts = stage_parts(stage, toy, toy.encoder(READER), toy_training(batch_size=12, accumulate=3))[1](3)
    assert [len(part["ids"]) for part in parts] == [4, 4, 4]
    assert [name for part in parts for name in part["ids"]] == whole["ids"]


@pytest.mark.parametrize("stage", STAGES)
def test_an_epoch_shows_every_text_once(toy: Toy, stage: str) -> None:
    count = 52 if stage == "align" else 32
    _, batches = stage_parts(stage, toy, toy.encoder(READER), toy_training(batch_size=4))
    ids = [name for step in range(count // 4) for name in batches(step)[0]["ids"]]
    assert len(set(ids)) == count


@pytest.mark.parametrize("stage", STAGES)
def test_a_batch_that_can_not_be_shared_out_is_refused(toy: Toy, stage: str, processes: Processes) -> None:
    processes.be(0, of=2)
    with pytest.raises(InputError, match="8 for accumulate 8 x 2 processes") as error:
        stage_parts(stage, toy, toy.encoder(READER), toy_training(accumulate=8))
    assert error.value.problems[0].allowed == "a multiple of 16"


# ------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize("search_within", [False, True])
@pytest.mark.parametrize("stage", ["teacher", "refine"])
def test_masks_say_what_may_be_a_negative(toy: Toy, stage: str, search_within: bool) -> None:
    toy = within(toy) if search_within else toy
    dataset, encoder = toy.dataset, toy.encoder(READER)
    records = {record.id: record for record in dataset.splits["train"]}
    _, batches = stage_parts(stage, toy, encoder, toy_training())
    hidden = negatives = 0
    for step in STEPS:
        (batch,) = batches(step)
        columns = columns_of(toy, encoder, batch)
        for name, positive, mask_N in zip(batch["ids"], batch["positive_Q"], batch["forbidden_QN"], strict=True):
            record = records[name]
            assert dataset.documents.ids[columns[int(positive)]] in record.positives
            assert mask_N.tolist() == [not negatives_by_hand(dataset, record, row) for row in columns]
            hidden, negatives = hidden + int(mask_N.sum()), negatives + int((~mask_N).sum())
    assert hidden > len(STEPS) * 8 and negatives > len(STEPS) * 8, "nothing was put to the test"


def columns_of(toy: Toy, encoder: Encoder, batch: Any) -> list[int]:
    """The document rows of a batch's columns, recovered from what the model would see."""
    documents = toy.dataset.documents
    if "document_ND" in batch:
        frozen_ND = toy.documents.vectors(toy.documents.rows_of(documents.ids))
        equal_NN = (batch["document_ND"].numpy()[:, None] == frozen_ND[None]).all(axis=2)
        assert (equal_NN.sum(axis=1) == 1).all()
        return equal_NN.argmax(axis=1).tolist()
    return [documents.texts.index(text) for text in texts_of(encoder, batch)[batch["queries"] :]]


def test_a_query_with_two_positives_draws_either_and_never_has_the_other_as_negative(toy: Toy) -> None:
    _, batches = stage_parts("refine", toy, toy.encoder(READER), toy_training())
    drawn = set()
    for step in range(60):
        (batch,) = batches(step)
        if "q2a" in batch["ids"]:
            at = batch["ids"].index("q2a")
            columns = columns_of(toy, toy.encoder(READER), batch)
            drawn.add(columns[int(batch["positive_Q"][at])])
            assert all(batch["forbidden_QN"][at, n] for n, row in enumerate(columns) if row in (2, 5))
    assert drawn == {2, 5}


# ---------------------------------------------------------------------------------------------------- teacher


def test_a_teachers_batch_holds_each_document_once_with_its_hard_negatives(toy: Toy) -> None:
    encoder = toy.encoder(READER)
    _, batches = stage_parts("teacher", toy, encoder, toy_training())
    negatives = toy_negatives(toy.dataset)
    place = {record.id: row for row, record in enumerate(toy.dataset.splits["train"])}
    for step in STEPS:
        (batch,) = batches(step)
        columns = columns_of(toy, encoder, batch)
        assert len(set(columns)) == len(columns) == batch["forbidden_QN"].shape[1]
        for name in batch["ids"]:
            assert set(negatives[place[name]]) & set(columns), f"{name} came without its hard negative"
        assert texts_of(encoder, batch)[: batch["queries"]] == [
            toy.dataset.splits["train"][place[name]].text for name in batch["ids"]
        ]


def test_hard_negatives_are_drawn_without_repetition_and_as_many_as_there_are() -> None:
    negatives = [np.array([3, 1, 4]), np.array([5]), np.array([], dtype=np.int64)]
    random = np.random.default_rng(0)
    seen = set()
    for _ in range(40):
        drawn = pick_negatives(np.array([0, 1, 2]), negatives, 2, random)
        assert drawn.dtype == np.int64 and len(drawn) == 3 and drawn[2] == 5
        assert len(set(drawn)) == 3
        seen.update(drawn[:2].tolist())
    assert seen == {1, 3, 4}
    assert pick_negatives(np.array([0]), negatives, 0, random).size == 0


def test_without_hard_negatives_only_positives_are_encoded(toy: Toy) -> None:
    encoder = toy.encoder(READER)
    parts = stage_parts("teacher", toy, encoder, toy_training())[1]
    assert isinstance(parts, TeacherBatches)
    plain = TeacherBatches(parts.queries, parts.collate, parts.settings, seed=5, language_temperature=1.0,
                           hard_negatives=3)  # fmt: skip
    (batch,) = plain(0)
    assert sorted(set(batch["positive_Q"].tolist())) == list(range(batch["forbidden_QN"].shape[1]))


# ---------------------------------------------------------------------------------------------- stored vectors


def test_alignment_pairs_each_text_with_its_own_vector(toy: Toy) -> None:
    encoder = toy.encoder(READER)
    ids, words, _ = toy.texts
    for step in STEPS:
        (batch,) = stage_parts("align", toy, encoder, toy_training())[1](step)
        assert texts_of(encoder, batch) == [words[ids.index(name)] for name in batch["ids"]]
        np.testing.assert_array_equal(batch["teacher_QD"], toy.queries.vectors(toy.queries.rows_of(batch["ids"])))


def refinement(toy: Toy, **changes: Any) -> RefinementBatches:
    parts = stage_parts("refine", toy, toy.encoder(READER), toy_training())[1]
    assert isinstance(parts, RefinementBatches)
    teacher, mined = changes.pop("teacher", parts.teacher), changes.pop("mined", parts.mined)
    return RefinementBatches(
        parts.queries, parts.documents, teacher, parts.collate,
        parts.settings.model_copy(update=changes), seed=5, language_temperature=1.0, mined=mined,
    )  # fmt: skip


@pytest.mark.parametrize(
    "changes", [{"candidates": "all"}, {"candidates": "auto"}, {"candidates": "auto", "all_limit": 20}]
)
def test_all_documents_stand_in_the_data_sets_order(toy: Toy, changes: dict[str, Any]) -> None:
    for step in STEPS:
        (batch,) = refinement(toy, **changes)(step)
        assert columns_of(toy, toy.encoder(READER), batch) == list(range(20))
        assert batch["forbidden_QN"].shape == (8, 20)


@pytest.mark.parametrize("changes", [{}, {"candidates": "auto", "all_limit": 19}])
def test_sampled_candidates_hold_positives_mined_and_random_documents(toy: Toy, changes: dict[str, Any]) -> None:
    negatives = toy_negatives(toy.dataset)
    place = {record.id: row for row, record in enumerate(toy.dataset.splits["train"])}
    batches, extra = refinement(toy, **changes), 0
    for step in STEPS:
        (batch,) = batches(step)
        columns = columns_of(toy, toy.encoder(READER), batch)
        assert columns == sorted(set(columns))
        for name in batch["ids"]:
            assert set(negatives[place[name]]) & set(columns), f"{name} came without its mined negative"
        needed = {columns[int(n)] for n in batch["positive_Q"]} | set(np.concatenate(negatives).tolist())
        extra += len(set(columns) - needed)
    assert extra or len(set(np.concatenate(negatives).tolist())) == 20, "no random documents"


def test_sampling_nothing_leaves_the_positives(toy: Toy) -> None:
    (batch,) = refinement(toy, sampled=0, mined=None)(0)
    assert sorted(set(batch["positive_Q"].tolist())) == list(range(len(batch["document_ND"])))
    (more,) = refinement(toy, sampled=1000, mined=None)(0)
    assert columns_of(toy, toy.encoder(READER), more) == list(range(20))


def test_the_anchors_vectors_belong_to_the_queries(toy: Toy) -> None:
    (batch,) = refinement(toy)(2)
    expected_QD = toy.queries.vectors(toy.queries.rows_of([f"query:{name}" for name in batch["ids"]]))
    np.testing.assert_array_equal(batch["teacher_QD"], expected_QD)
    assert "teacher_QD" not in refinement(toy, teacher=None)(2)[0]


# ----------------------------------------------------------------------------------------------------- weights


@pytest.mark.parametrize("stage", ["teacher", "refine"])
def test_weights_follow_their_queries_and_are_one_on_average(toy: Toy, stage: str) -> None:
    records = {record.id: record for record in toy.dataset.splits["train"]}
    _, batches = stage_parts(stage, toy, toy.encoder(READER), toy_training(batch_size=4))
    mean = np.mean([record.weight for record in records.values()])
    seen: dict[str, float] = {}
    for step in range(8):
        (batch,) = batches(step)
        assert batch["weight_Q"].dtype == torch.float32
        seen |= dict(zip(batch["ids"], batch["weight_Q"].tolist(), strict=True))
    assert seen == {name: pytest.approx(record.weight / mean) for name, record in records.items()}
    assert np.mean(list(seen.values())) == pytest.approx(1)


def test_equal_weights_are_none(toy: Toy) -> None:
    dataset = toy_dataset()
    for split in dataset.splits.values():
        split[:] = [dataclasses.replace(record, weight=3.0) for record in split]
    equal = dataclasses.replace(toy, dataset=dataset)
    for stage in STAGES:
        assert stage_parts(stage, equal, toy.encoder(READER), toy_training())[1](0)[0]["weight_Q"] is None


# --------------------------------------------------------------------------------------------------- processes


class Processes:
    """Makes the batches believe that they are one of several processes."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.patch = patch

    def be(self, rank: int, *, of: int) -> None:
        self.patch.setattr("harness.training.batches.rank", lambda: rank)
        self.patch.setattr("harness.training.batches.world_size", lambda: of)


@pytest.fixture
def processes() -> Iterator[Processes]:
    with pytest.MonkeyPatch.context() as patch:
        yield Processes(patch)


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("stage", STAGES)
def test_the_parts_of_all_processes_are_the_batch_of_one(
    toy: Toy, stage: str, world: int, processes: Processes
) -> None:
    encoder = toy.encoder(READER)
    training = toy_training(accumulate=2, batch_size=16)
    padded = False
    for step in STEPS:
        whole = stage_parts(stage, toy, encoder, training)[1](step)
        parts = []
        for rank in range(world):
            processes.be(rank, of=world)
            parts.append(stage_parts(stage, toy, encoder, training)[1](step))
        processes.be(0, of=1)
        for micro, locals_ in zip(whole, zip(*parts, strict=True), strict=True):
            assert [name for part in locals_ for name in part["ids"]] == micro["ids"]
            assert {len(part["ids"]) for part in locals_} == {8 // world}
            if stage != "align":
                padded |= assert_columns_agree(toy, encoder, micro, locals_)
            queries = [text for part in locals_ for text in texts_of(encoder, part)[: len(part["ids"])]]
            assert queries == texts_of(encoder, micro)[:8]
            for name in ("teacher_QD", "weight_Q"):
                if micro.get(name) is not None:
                    assert torch.cat([part[name] for part in locals_]).equal(micro[name])
    assert padded == (stage == "teacher"), "an odd number of documents was never tried"


def assert_columns_agree(toy: Toy, encoder: Encoder, micro: Any, locals_: Any) -> bool:
    """Whether columns were added, after asserting that the others are those of one process."""
    columns = micro["forbidden_QN"].shape[1]
    assert torch.cat([part["positive_Q"] for part in locals_]).equal(micro["positive_Q"])
    forbidden_QN = torch.cat([part["forbidden_QN"] for part in locals_])
    assert forbidden_QN[:, :columns].equal(micro["forbidden_QN"])
    assert forbidden_QN[:, columns:].all(), "a repeated document is hidden from all"
    if "document_ND" in micro:
        assert all(part["document_ND"].equal(micro["document_ND"]) for part in locals_)
        return False
    shares = [texts_of(encoder, part)[part["queries"] :] for part in locals_]
    assert len({len(share) for share in shares}) == 1, "every process encodes as many documents"
    gathered = [text for share in shares for text in share]
    alone = texts_of(encoder, micro)[micro["queries"] :]
    assert gathered[:columns] == alone and set(gathered[columns:]) <= {alone[-1]}
    assert len(gathered) == forbidden_QN.shape[1]
    return len(gathered) > columns


def test_training_queries_hold_rows_of_positives(toy: Toy) -> None:
    queries = training_queries(toy.dataset)
    assert [rows.tolist() for rows in queries.positives[4:6]] == [[2, 5], [2]]
    assert queries.weight_R[:6].tolist() == [1, 1, 2, 2, 3, 3]
    random = np.random.default_rng(0)
    assert {int(queries.pick_positive(np.array([4]), random)[0]) for _ in range(20)} == {2, 5}


def test_alignment_takes_any_rows_of_a_store(toy: Toy) -> None:
    """A store may hold more than is trained on, in another order."""
    encoder = toy.encoder(READER)
    rows = np.array([40, 2, 17, 33])
    words = [toy.texts[1][row] for row in rows]
    batches = AlignmentBatches(
        words, ["aa"] * 4, [toy.queries.ids[row] for row in rows], toy.queries, encoder.collator("query"),
        toy_training(batch_size=4), seed=0, language_temperature=1.0,
    )  # fmt: skip
    (batch,) = batches(0)
    assert sorted(batch["ids"]) == sorted(toy.queries.ids[row] for row in rows)
