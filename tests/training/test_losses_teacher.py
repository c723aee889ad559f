"""The losses of stage 1 beyond InfoNCE. Axes: Q queries, N documents, G queries of all processes, D dimensions."""

from __future__ import annotations

import inspect
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.training.losses import (
    Labels,
    clamp_times,
    contrastive,
    info_nce,
    kl_to_scores,
    learned_temperature,
    margin_mse,
    matryoshka,
)

pytestmark = pytest.mark.filterwarnings("ignore:Importing from 'sentence_transformers:DeprecationWarning")


def unit(rows: int, width: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.nn.functional.normalize(torch.randn(rows, width, generator=generator), dim=1)


def at(*degrees: float) -> Tensor:
    """Unit vectors of the plane: the score of two is the cosine of the angle between them."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def cosine(degrees: float) -> float:
    return math.cos(math.radians(degrees))


def bools(*rows: str) -> Tensor:
    """``"01"``: a row of False and True."""
    return torch.tensor([[mark == "1" for mark in row] for row in rows])


def nll(positive: float, *others: float, temperature: float = 0.5) -> float:
    """Minus the logarithm of the positive's share."""
    return math.log(sum(math.exp(s / temperature) for s in (positive, *others))) - positive / temperature


QUERY_QD, DOCUMENT_ND = at(0, 90), at(20, 80, 130)
LABELS = Labels(
    torch.tensor([0, 1]), forbidden_QN=bools("100", "010"), own_QN=bools("100", "010"), related_QG=bools("10", "01")
)
# Angles of the first query: to documents 20, 80, 130; to the other query 90; its positive's to other documents 60, 110.
# Of the second: 70, 10, 40; 90; 60, 50.


def changed(**changes: Any) -> Labels:
    return Labels(**{**vars(LABELS), **changes})


def value(labels: Labels = LABELS, **options: Any) -> float:
    return float(contrastive(QUERY_QD, DOCUMENT_ND, labels, **{"temperature": 0.5, **options}))


def towers(labels: Labels = LABELS, **options: Any) -> float:
    return value(labels, other_GD=QUERY_QD, **options)


# ------------------------------------------------------------------------------------------------------ by hand


def test_same_tower_negatives_by_hand() -> None:
    first = nll(*map(cosine, (20, 80, 130, 90, 60, 110)))
    second = nll(*map(cosine, (10, 70, 40, 90, 60, 50)))
    assert towers() == pytest.approx((first + second) / 2, rel=1e-6)


def test_related_queries_and_known_documents_are_no_negatives_in_any_term() -> None:
    labels = changed(related_QG=bools("11", "01"), forbidden_QN=bools("101", "010"))
    first = nll(*map(cosine, (20, 80, 60)))  # without the other query, and without the third document, twice
    second = nll(*map(cosine, (10, 70, 40, 90, 60, 50)))
    assert towers(labels) == pytest.approx((first + second) / 2, rel=1e-6)


def test_an_own_hard_negative_counts_for_the_query_and_not_for_its_positive() -> None:
    first = nll(*map(cosine, (20, 80, 130, 90, 60)))
    second = nll(*map(cosine, (10, 70, 40, 90, 60, 50)))
    assert towers(changed(own_QN=bools("101", "010"))) == pytest.approx((first + second) / 2, rel=1e-6)


def test_what_scores_above_the_positive_by_the_margin_is_masked_in_every_term() -> None:
    # The first query's: its positive .5, documents .866 and .342, the other query .996; its positive's .866 and .985.
    query_QD, document_ND = at(0, 5), at(60, 30, 70)
    labels = changed(weight_Q=torch.tensor([2.0, 0.0]))  # the first query alone

    def first(mask_margin: float | None) -> float:
        return float(
            contrastive(
                query_QD, document_ND, labels, temperature=0.5, other_GD=query_QD, mask_margin=mask_margin
            )  # fmt: skip
        )

    assert first(2.0) == first(None) == pytest.approx(nll(*map(cosine, (60, 30, 70, 5, 30, 10))), rel=1e-6)
    assert first(0.4) == pytest.approx(nll(*map(cosine, (60, 30, 70, 30))), rel=1e-6)
    assert first(0.1) == pytest.approx(nll(*map(cosine, (60, 70))), rel=1e-6)
    assert first(0.0) == first(0.1)  # the positive itself is not above itself


def test_the_additive_margin_is_taken_from_the_positive_alone() -> None:
    first, second = nll(cosine(20) - 0.2, cosine(80), cosine(130)), nll(cosine(10) - 0.2, cosine(70), cosine(40))
    assert value(margin=0.2) == pytest.approx((first + second) / 2, rel=1e-6)


def test_grades_are_targets_in_proportion() -> None:
    labels = changed(
        forbidden_QN=bools("101", "010"), grade_QN=torch.tensor([[3.0, 0.0, 1.0], [0.0, 2.0, 0.0]])
    )  # fmt: skip
    all_three = map(cosine, (20, 80, 130))
    z = math.log(sum(math.exp(2 * s) for s in all_three))
    first = z - 2 * (0.75 * cosine(20) + 0.25 * cosine(130))  # known positives, and yet in the softmax
    second = nll(*map(cosine, (10, 70, 40)))
    assert value(labels) == pytest.approx((first + second) / 2, rel=1e-6)


def test_one_positive_with_a_grade_is_one_without() -> None:
    grade_QN = torch.tensor([[0.3, 0.0, 0.0], [0.0, 7.0, 0.0]])
    assert towers(changed(grade_QN=grade_QN), margin=0.1) == pytest.approx(towers(margin=0.1), rel=1e-6)


def test_weights_are_factors_of_each_query() -> None:
    first, second = nll(*map(cosine, (20, 80, 130))), nll(*map(cosine, (10, 70, 40)))
    weight_Q = torch.tensor([0.5, 1.5])
    assert value(changed(weight_Q=weight_Q)) == pytest.approx((0.5 * first + 1.5 * second) / 2, rel=1e-6)


SCORES = changed(own_QN=bools("101", "110"), grade_QN=torch.tensor([[2.0, 0.0, 0.0], [1.0, 3.0, 0.0]]))


def test_kl_to_scores_by_hand() -> None:
    """Over the query's own documents: the first's are at 20 and 130 degrees, the second's at 70 and 10."""
    expected = 0.0
    for angles, given in (((20, 130), (2.0, 0.0)), ((70, 10), (1.0, 3.0))):
        ours = [math.exp(cosine(angle) / 0.5) for angle in angles]
        theirs = [math.exp(score / 4) for score in given]
        for our, their in zip(ours, theirs, strict=True):
            expected += their / sum(theirs) * math.log(their / sum(theirs) / (our / sum(ours))) / 2
    found = kl_to_scores(QUERY_QD, DOCUMENT_ND, SCORES, temperature=0.5, score_temperature=4.0)
    assert float(found) == pytest.approx(expected, rel=1e-6)


def test_margin_mse_by_hand() -> None:
    first = (cosine(20) - cosine(130) - 2 / 4) ** 2
    second = (cosine(10) - cosine(70) - 2 / 4) ** 2
    found = margin_mse(QUERY_QD, DOCUMENT_ND, SCORES, score_temperature=4.0)
    assert float(found) == pytest.approx((first + second) / 2, rel=1e-6)


def test_a_query_with_one_document_teaches_nothing_of_scores() -> None:
    query_QD = QUERY_QD.clone().requires_grad_()
    alone = changed(own_QN=bools("100", "010"), grade_QN=SCORES.grade_QN)
    for loss in (kl_to_scores(query_QD, DOCUMENT_ND, alone, temperature=0.5), margin_mse(query_QD, DOCUMENT_ND, alone)):
        assert float(loss.detach()) == pytest.approx(0, abs=1e-7)
        assert torch.autograd.grad(loss, query_QD)[0].abs().max() == 0


def test_matryoshka_by_hand() -> None:
    """The first of two dimensions, made to have length 1, is a sign."""

    def product(query_QD: Tensor, document_ND: Tensor) -> Tensor:
        return (query_QD * document_ND).sum()

    found = matryoshka(product, at(30), at(100), dimensions=[2, 1], weights=[1.0, 0.5])
    assert float(found) == pytest.approx(cosine(70) + 0.5 * -1, rel=1e-6)
    assert float(matryoshka(product, at(30), at(100), dimensions=[2])) == pytest.approx(cosine(70), rel=1e-6)


def test_a_learned_temperature_is_clamped_in_place_and_has_a_finite_gradient() -> None:
    log_times_1 = torch.nn.Parameter(torch.tensor([-math.log(0.05)]))
    assert learned_temperature(log_times_1).item() == pytest.approx(0.05)
    loss = contrastive(
        QUERY_QD, DOCUMENT_ND, LABELS, temperature=learned_temperature(log_times_1), other_GD=QUERY_QD, mask_margin=0.1
    )
    loss.backward()
    step = 1e-3
    higher, lower = (towers(temperature=0.05 * math.exp(-d), mask_margin=0.1) for d in (step, -step))
    assert float(log_times_1.grad) == pytest.approx((higher - lower) / (2 * step), rel=1e-2)
    for start, kept in ((-1.0, 1.0), (9.0, 0.01), (3.0, math.exp(-3))):
        with torch.no_grad():
            log_times_1.fill_(start)
        clamp_times(log_times_1)
        assert learned_temperature(log_times_1).item() == pytest.approx(kept, rel=1e-5)


@pytest.mark.parametrize("options", [{}, {"mask_margin": 0.0}, {"margin": 0.3}])
def test_masked_candidates_leave_finite_gradients_in_bf16_too(options: dict[str, Any]) -> None:
    query_QD, document_ND = (unit(6, 8, seed).bfloat16().requires_grad_() for seed in (1, 2))
    everything = torch.ones(6, 6, dtype=torch.bool)
    labels = Labels(torch.arange(6), everything, None, everything, None, everything)
    loss = contrastive(query_QD, document_ND, labels, temperature=0.05, other_GD=query_QD, **options)
    gradients = torch.autograd.grad(loss, [query_QD, document_ND])
    assert loss.dtype == torch.float32 and all(torch.isfinite(g).all() for g in gradients)
    with torch.autocast("cpu", torch.bfloat16):
        assert contrastive(query_QD, document_ND, labels, temperature=0.05, other_GD=query_QD, **options) == loss


# ----------------------------------------------------------------------- against sentence-transformers


def listed(rows: int, columns: int) -> Labels:
    """What a batch of tuples is: columns one after the other, the first of them the positives."""
    own_QN = torch.eye(rows, dtype=torch.bool).repeat(1, columns)
    return Labels(
        torch.arange(rows), torch.zeros_like(own_QN), own_QN=own_QN, related_QG=torch.eye(rows, dtype=torch.bool)
    )  # fmt: skip


def assert_same(ours: Tensor, theirs: Tensor, vectors: list[Tensor]) -> None:
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    gradients = zip(torch.autograd.grad(ours, vectors), torch.autograd.grad(theirs, vectors), vectors, strict=True)
    for ours_BD, theirs_BD, vector_BD in gradients:
        tangents = [g - (g * vector_BD).sum(dim=1, keepdim=True) * vector_BD for g in (ours_BD, theirs_BD)]
        torch.testing.assert_close(*tangents, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("negatives", [0, 2])
def test_same_tower_negatives_are_those_of_sentence_transformers(negatives: int) -> None:
    from sentence_transformers.losses import CachedMultipleNegativesRankingLoss, MultipleNegativesRankingLoss

    if "directions" not in inspect.signature(MultipleNegativesRankingLoss).parameters:
        pytest.skip("this version knows one direction")
    vectors = [unit(6, 8, seed).requires_grad_() for seed in range(2 + negatives)]
    directions = ("query_to_doc", "query_to_query", "doc_to_doc")
    plain = MultipleNegativesRankingLoss(None, scale=1 / 0.07, directions=directions)
    cached = CachedMultipleNegativesRankingLoss([None], scale=1 / 0.07, directions=directions, mini_batch_size=4)
    query_QD, *columns = vectors
    ours = contrastive(
        query_QD, torch.cat(columns), listed(6, 1 + negatives), temperature=0.07, other_GD=query_QD
    )  # fmt: skip
    assert_same(ours, plain.compute_loss_from_embeddings(vectors, torch.empty(0)), vectors)
    ours = contrastive(query_QD, torch.cat(columns), listed(6, 1 + negatives), temperature=0.07, other_GD=query_QD)
    in_parts = [list(vector.split(4)) for vector in vectors]
    assert_same(ours, cached.calculate_loss(in_parts), vectors)


def test_matryoshka_is_that_of_sentence_transformers() -> None:
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.losses import MatryoshkaLoss, MultipleNegativesRankingLoss

    class Given(SentenceTransformer):
        """A model whose vectors are given: its input."""

        def __init__(self) -> None:
            torch.nn.Module.__init__(self)

        def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
            return {"sentence_embedding": features["vectors"]}

        def get_embedding_dimension(self) -> int:
            return 8

    vectors, model = [unit(6, 8, seed).requires_grad_() for seed in range(2)], Given()
    wrapped = MultipleNegativesRankingLoss(model, scale=1 / 0.07)
    outer = MatryoshkaLoss(model, wrapped, [8, 4, 2], [1.0, 0.5, 0.25])
    theirs = outer([{"vectors": vector} for vector in vectors], torch.empty(0))
    ours = matryoshka(
        lambda query_QD, document_ND: info_nce(query_QD, document_ND, torch.arange(6), temperature=0.07),
        *vectors, dimensions=[8, 4, 2], weights=[1.0, 0.5, 0.25],
    )  # fmt: skip
    assert_same(ours, theirs, vectors)


def with_scores(rows: int, columns: int) -> tuple[Labels, Tensor]:
    """Random scores of a query's documents, and where they stand."""
    score_QK = 5 * torch.rand(rows, columns, generator=torch.Generator().manual_seed(7))
    labels = listed(rows, columns)
    assert labels.own_QN is not None
    grade_QN = torch.zeros(labels.own_QN.shape)
    for row in range(rows):
        grade_QN[row, row::rows] = score_QK[row]
    return Labels(**{**vars(labels), "grade_QN": grade_QN}), score_QK


@pytest.mark.parametrize("negatives", [1, 3])
def test_margin_mse_is_that_of_sentence_transformers(negatives: int) -> None:
    from sentence_transformers.losses import MarginMSELoss

    vectors = [unit(6, 8, seed).requires_grad_() for seed in range(2 + negatives)]
    labels, score_QK = with_scores(6, 1 + negatives)
    theirs = MarginMSELoss(None).compute_loss_from_embeddings(vectors, score_QK)
    assert_same(margin_mse(vectors[0], torch.cat(vectors[1:]), labels), theirs, vectors)


@pytest.mark.parametrize("negatives", [1, 3])
def test_kl_is_that_of_sentence_transformers_but_for_a_factor(negatives: int) -> None:
    from sentence_transformers.losses import DistillKLDivLoss

    vectors = [unit(6, 8, seed).requires_grad_() for seed in range(2 + negatives)]
    labels, score_QK = with_scores(6, 1 + negatives)
    theirs = DistillKLDivLoss(None, temperature=0.5).compute_loss_from_embeddings(vectors, score_QK)
    ours = kl_to_scores(vectors[0], torch.cat(vectors[1:]), labels, temperature=0.5, score_temperature=0.5)
    assert_same(0.5**2 * ours, theirs, vectors)
