from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from builders.training import ENCODERS, STAGES, Toy, one_step, pair_collator, stage_parts, toy_training
from torch import Tensor

from harness.encoders.encoder import Encoder
from harness.training.losses import info_nce
from harness.training.objectives import Contrastive


def assert_same_gradients(ours: dict[str, Tensor], theirs: dict[str, Tensor], share: float = 1e-5) -> None:
    """Every gradient agrees within ``share`` of its own size, or of the largest where it should be zero."""
    assert ours.keys() == theirs.keys() and ours
    largest = max(float(gradient.abs().max()) for gradient in theirs.values())
    for name, gradient in theirs.items():
        size = max(float(gradient.abs().max()), 1e-2 * largest)
        assert float((ours[name] - gradient).abs().max()) <= share * size, name


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("stage", STAGES)
def test_chunks_change_neither_loss_nor_gradients(toy: Toy, stage: str, kind: str) -> None:
    encoder = toy.encoder(kind)
    objective, batches = stage_parts(stage, toy, encoder, toy_training(chunks=1))
    (whole,) = batches(0)
    assert len(whole["chunks"]) == 1
    loss, gradients = one_step(objective, encoder, whole)
    assert gradients.keys() == dict(encoder.named_parameters()).keys(), "a parameter without gradient"
    for chunks in (2, 5):
        (batch,) = stage_parts(stage, toy, encoder, toy_training(chunks=chunks))[1](0)
        assert len(batch["chunks"]) == chunks
        assert len({chunk["input_ids"].shape[1] for chunk in batch["chunks"]}) > 1, "all chunks are equally long"
        again, chunked_gradients = one_step(objective, encoder, batch)
        assert again == pytest.approx(loss, rel=1e-5)
        assert_same_gradients(chunked_gradients, gradients)


@pytest.mark.parametrize("stage", STAGES)
def test_the_sync_flag_is_given_with_the_last_backward_only(toy: Toy, stage: str) -> None:
    encoder = toy.encoder()
    objective, batches = stage_parts(stage, toy, encoder, toy_training())
    flags: list[bool] = []
    objective.step(encoder, batches(0)[0], lambda loss, sync=True: (loss.backward(), flags.append(sync)))
    assert flags[-1] and not any(flags[:-1])


def test_refinement_sends_nothing_into_the_documents(toy: Toy) -> None:
    encoder = toy.encoder()
    objective, batches = stage_parts("refine", toy, encoder, toy_training())
    (batch,) = batches(0)
    assert not batch["document_ND"].requires_grad and not batch["teacher_QD"].requires_grad
    losses: list[Tensor] = []
    objective.step(encoder, batch, lambda loss: losses.append(loss))
    leaves, waiting, seen = set(), [losses[0].grad_fn], set()
    while waiting:  # every leaf that the graph reaches is a parameter of the model
        node = waiting.pop()
        if node is not None and node not in seen:
            seen.add(node)
            leaves.update([node.variable.data_ptr()] if hasattr(node, "variable") else [])
            waiting += [parent for parent, _ in node.next_functions]
    assert leaves == {parameter.data_ptr() for parameter in encoder.parameters()}


def test_the_anchor_is_weighed_and_logged(toy: Toy) -> None:
    encoder = toy.encoder()
    objective, batches = stage_parts("refine", toy, encoder, toy_training())
    (batch,) = batches(0)
    logs, _ = one_step(objective, encoder, batch)
    assert logs["loss"] == pytest.approx(logs["contrastive"] + 0.5 * logs["anchor"])
    without = dict(batch)
    del without["teacher_QD"]
    logs_without, _ = one_step(dataclasses.replace(objective, anchor=0.0), encoder, without)  # type: ignore[type-var]
    assert logs_without == {"loss": pytest.approx(logs["contrastive"])}


def shared_document_batch(toy: Toy, encoder: Encoder, columns: list[int], forbidden: list[list[bool]]) -> Any:
    """Three queries, the first two with the same positive; ``columns`` are the documents in the batch."""
    records, texts = toy.dataset.splits["train"], toy.dataset.documents.texts
    queries = [records[0], records[1], records[20]]
    tokens = pair_collator(encoder, chunks=2)([q.text for q in queries], [texts[row] for row in columns])
    return {
        "chunks": tokens.chunks, "restore": tokens.restore, "queries": 3, "weight_Q": None,
        "forbidden_QN": torch.tensor(forbidden), "ids": [q.id for q in queries],
    }  # fmt: skip


def test_a_document_shared_by_two_queries_is_encoded_once_and_counts_once(toy: Toy) -> None:
    encoder = toy.encoder()
    once = shared_document_batch(toy, encoder, [0, 10, 15], np.zeros((3, 3), dtype=bool).tolist())
    once["positive_Q"] = torch.tensor([0, 0, 1])
    # Encoded twice: each of the two queries has its own copy, and for everyone the other copy is masked.
    hidden = [[False, True, False, False], [True, False, False, False], [False, True, False, False]]
    twice = shared_document_batch(toy, encoder, [0, 0, 10, 15], hidden)
    twice["positive_Q"] = torch.tensor([0, 1, 2])
    loss_once, gradients_once = one_step(Contrastive(0.05), encoder, once)
    loss_twice, gradients_twice = one_step(Contrastive(0.05), encoder, twice)
    assert loss_once == pytest.approx(loss_twice, rel=1e-5)
    assert_same_gradients(gradients_once, gradients_twice)
    unmasked = {**twice, "forbidden_QN": torch.zeros(3, 4, dtype=torch.bool)}
    assert one_step(Contrastive(0.05), encoder, unmasked)[0] != pytest.approx(loss_once, rel=1e-3)


@pytest.mark.parametrize("kind", ENCODERS)
def test_contrastive_is_info_nce_over_separately_encoded_sides(toy: Toy, kind: str) -> None:
    """The merged, sorted, chunked forward against one plain call a side, with the prompts of each."""
    encoder = toy.encoder(kind)
    objective, batches = stage_parts("teacher", toy, encoder, toy_training(chunks=3))
    (batch,) = batches(0)
    logs, _ = one_step(objective, encoder, batch)
    records = {record.id: record for record in toy.dataset.splits["train"]}
    hidden_N = batch["forbidden_QN"].shape[1]
    documents = [d for d in range(20) if d in document_rows(toy, encoder, batch)]
    assert len(documents) == hidden_N
    query_QD = encoder.encode([records[name].text for name in batch["ids"]], side="query")
    document_ND = encoder.encode([toy.dataset.documents.texts[row] for row in documents], side="document")
    expected = info_nce(
        torch.from_numpy(query_QD), torch.from_numpy(document_ND), batch["positive_Q"], temperature=0.05,
        forbidden_QN=batch["forbidden_QN"], weight_Q=batch["weight_Q"],
    )  # fmt: skip
    assert logs["loss"] == pytest.approx(float(expected), rel=1e-5)


def document_rows(toy: Toy, encoder: Encoder, batch: Any) -> set[int]:
    """Which documents a teacher's batch holds, by their token ids."""
    rows = {}
    for row, text in enumerate(toy.dataset.documents.texts):
        tokens = encoder.tokenizer(encoder.prompts["document"] + text)["input_ids"]
        rows.setdefault(tuple(tokens), []).append(row)
    texts = [
        tuple(ids[mask.bool()].tolist())
        for chunk in batch["chunks"]
        for ids, mask in zip(chunk["input_ids"], chunk["attention_mask"], strict=True)
    ]
    in_order = [texts[place] for place in batch["restore"].tolist()][batch["queries"] :]
    return {rows[tokens].pop(0) for tokens in in_order}
