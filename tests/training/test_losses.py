"""Axes: Q queries, N documents, D dimensions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from harness.training.losses import info_nce, l2_alignment

QUERY_QD = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
DOCUMENT_ND = torch.tensor([[1.0, 0.0], [0.0, 1.0], [-1.0, 0.0]])
POSITIVE_Q = torch.tensor([0, 1])
# At temperature 0.5 the first query's logits are 2, 0, -2 and the second's 0, 2, 0.
FIRST = math.log(math.exp(2) + 1 + math.exp(-2)) - 2
SECOND = math.log(math.exp(2) + 2) - 2


def unit(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)


def loss(**changes: object) -> float:
    return float(info_nce(QUERY_QD, DOCUMENT_ND, POSITIVE_Q, **{"temperature": 0.5, **changes}))  # type: ignore[arg-type]


def test_info_nce_by_hand() -> None:
    assert loss() == pytest.approx((FIRST + SECOND) / 2, rel=1e-6)


def test_the_temperature_divides_the_scores() -> None:
    first, second = math.log(math.e + 1 + 1 / math.e) - 1, math.log(math.e + 2) - 1
    assert loss(temperature=1.0) == pytest.approx((first + second) / 2, rel=1e-6)


def test_a_forbidden_document_is_no_negative() -> None:
    forbidden_QN = torch.tensor([[False, True, False], [False, False, True]])
    first, second = math.log(math.exp(2) + math.exp(-2)) - 2, math.log(math.exp(2) + 1) - 2
    assert loss(forbidden_QN=forbidden_QN) == pytest.approx((first + second) / 2, rel=1e-6)


def test_the_positive_counts_even_where_it_is_forbidden() -> None:
    forbidden_QN = torch.tensor([[True, False, False], [False, True, False]])
    assert loss(forbidden_QN=forbidden_QN) == pytest.approx((FIRST + SECOND) / 2, rel=1e-6)
    assert forbidden_QN.equal(torch.tensor([[True, False, False], [False, True, False]])), "the caller's mask changed"


def test_weights_are_factors_of_each_query() -> None:
    weight_Q = torch.tensor([0.5, 1.5])
    assert loss(weight_Q=weight_Q) == pytest.approx((0.5 * FIRST + 1.5 * SECOND) / 2, rel=1e-6)


@settings(max_examples=50, deadline=None)
@given(data=st.data(), queries=st.integers(1, 4), documents=st.integers(1, 5))
def test_no_mask_hides_the_positive(data: st.DataObject, queries: int, documents: int) -> None:
    flags = data.draw(st.lists(st.booleans(), min_size=queries * documents, max_size=queries * documents))
    column = st.integers(0, documents - 1)
    positive_Q = torch.tensor(data.draw(st.lists(column, min_size=queries, max_size=queries)))
    forbidden_QN = torch.tensor(flags).view(queries, documents)
    query_QD = unit(queries, 3, seed=1).requires_grad_()
    document_ND = unit(documents, 3, seed=2)
    result = info_nce(query_QD, document_ND, positive_Q, temperature=0.1, forbidden_QN=forbidden_QN)
    result.backward()
    expected = 0.0
    for row in range(queries):
        positive = int(positive_Q[row])
        logits = [10 * float(query_QD[row].detach().double() @ document_ND[n].double()) for n in range(documents)]
        kept = [logits[n] for n in range(documents) if n == positive or not forbidden_QN[row, n]]
        expected += (math.log(sum(map(math.exp, kept))) - logits[positive]) / queries
    assert float(result.detach()) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    assert torch.isfinite(query_QD.grad).all()


@pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers:DeprecationWarning")
@pytest.mark.parametrize("negatives", [0, 1, 2])
def test_info_nce_is_the_ranking_loss_of_sentence_transformers(negatives: int) -> None:
    from sentence_transformers.losses import MultipleNegativesRankingLoss

    query_QD, *columns = (unit(6, 8, seed).requires_grad_() for seed in range(2 + negatives))
    theirs = MultipleNegativesRankingLoss(None, scale=1 / 0.07).compute_loss_from_embeddings(
        [query_QD, *columns], torch.empty(0)
    )
    ours = info_nce(query_QD, torch.cat(columns), torch.arange(6), temperature=0.07)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    their_gradients = torch.autograd.grad(theirs, [query_QD, *columns])
    # Theirs normalises inside, so its gradients lie in the tangent planes; ours leaves that to the model.
    for vector_BD, ours_BD, theirs_BD in zip(
        (query_QD, *columns), torch.autograd.grad(ours, [query_QD, *columns]), their_gradients, strict=True
    ):
        tangent_BD = ours_BD - (ours_BD * vector_BD).sum(dim=1, keepdim=True) * vector_BD
        torch.testing.assert_close(tangent_BD, theirs_BD, rtol=1e-4, atol=1e-5)


def test_l2_alignment_of_unit_vectors_is_two_minus_two_cosines() -> None:
    student_QD, teacher_QD = unit(5, 7, seed=1), unit(5, 7, seed=2)
    cosine_Q = torch.nn.functional.cosine_similarity(student_QD, teacher_QD)
    torch.testing.assert_close(l2_alignment(student_QD, teacher_QD), (2 - 2 * cosine_Q).mean())
    assert float(l2_alignment(student_QD, student_QD)) == 0.0


def test_l2_alignment_is_the_mean_square_error_times_the_width() -> None:
    student_QD, teacher_QD = 3 * unit(5, 7, seed=1), unit(5, 7, seed=2)
    expected = torch.nn.functional.mse_loss(student_QD, teacher_QD) * 7
    torch.testing.assert_close(l2_alignment(student_QD, teacher_QD), expected)


def test_l2_alignment_by_hand_with_weights() -> None:
    teacher_QD = torch.tensor([[0.0, 1.0], [0.0, 1.0]])  # distances squared: 2 and 0, then 2 and 4
    assert float(l2_alignment(QUERY_QD, teacher_QD, weight_Q=torch.tensor([0.5, 1.5]))) == 0.5 * 2 / 2
    assert float(l2_alignment(QUERY_QD, -teacher_QD, weight_Q=torch.tensor([0.5, 1.5]))) == (0.5 * 2 + 1.5 * 4) / 2


def test_bf16_vectors_give_an_fp32_loss_and_bf16_gradients() -> None:
    student_QD = unit(4, 8, seed=1).bfloat16().requires_grad_()
    teacher_ND = unit(4, 8, seed=2).bfloat16()
    for result, exact in (
        (info_nce(student_QD, teacher_ND, torch.arange(4), temperature=0.05),
         info_nce(student_QD.float(), teacher_ND.float(), torch.arange(4), temperature=0.05)),
        (l2_alignment(student_QD, teacher_ND), l2_alignment(student_QD.float(), teacher_ND.float())),
    ):  # fmt: skip
        assert result.dtype == torch.float32
        torch.testing.assert_close(result, exact, rtol=1e-6, atol=0)
        assert torch.autograd.grad(result, student_QD)[0].dtype == torch.bfloat16


def test_autocast_does_not_round_the_scores() -> None:
    query_QD, document_ND = unit(8, 16, seed=1), unit(20, 16, seed=2)
    exact = info_nce(query_QD, document_ND, torch.arange(8), temperature=0.01)
    with torch.autocast("cpu", torch.bfloat16):
        under_autocast = info_nce(query_QD, document_ND, torch.arange(8), temperature=0.01)
    assert under_autocast == exact
