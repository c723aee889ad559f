"""Losses: pure functions of tensors, called by objectives and nowhere else.

Axes: Q queries, N documents, G queries of all processes, D dimensions. All losses are scalars in fp32: the mean over
the queries, each one's times its weight.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

FEWEST_TIMES, MOST_TIMES = 1.0, 100.0  # what a learned temperature may multiply scores by


@dataclass(frozen=True)
class Labels:
    """What is known of Q queries and N documents.

    Args:
        positive_Q: int64, the column of each query's positive.
        forbidden_QN: bool, True where a document may not be a negative of the query (another known positive, a
            duplicate). The query's positives count nevertheless.
        weight_Q: factor of each query's loss; scale it to mean 1 for an ordinary weighted mean.
        own_QN: bool, the documents that were put into the batch for the query: its positives and hard negatives.
        grade_QN: float, the score given to each of a query's own documents; 0 for its negatives.
        related_QG: bool, True where another query may not be a negative: the query itself, one with the same text, or
            one with a positive in common.
    """

    positive_Q: Tensor
    forbidden_QN: Tensor | None = None
    weight_Q: Tensor | None = None
    own_QN: Tensor | None = None
    grade_QN: Tensor | None = None
    related_QG: Tensor | None = None


def _weighted_mean(value_Q: Tensor, weight_Q: Tensor | None) -> Tensor:
    return value_Q.mean() if weight_Q is None else (value_Q * weight_Q).mean()


def _scores(a_QD: Tensor, b_ND: Tensor) -> Tensor:
    # Scores in fp32 also under autocast: bf16 rounds a cosine near 1 by up to 0.002, which a temperature of 0.05
    # turns into 0.04 of a logit.
    with torch.autocast(a_QD.device.type, enabled=False):
        return a_QD.float() @ b_ND.float().T


def _logits(
    score_QN: Tensor, temperature: float | Tensor, hidden_QN: Tensor | None, most_Q1: Tensor | None
) -> Tensor:  # fmt: skip
    """``-inf`` where a candidate is hidden, or scores above ``most_Q1``."""
    if most_Q1 is not None:
        above_QN = score_QN > most_Q1
        hidden_QN = above_QN if hidden_QN is None else hidden_QN | above_QN
    # Divided first: the gradient of a temperature that divides -inf is no number.
    logit_QN = score_QN / temperature
    return logit_QN if hidden_QN is None else logit_QN.masked_fill(hidden_QN, float("-inf"))


# --------------------------------------------------------------------------------------------------- contrastive


def info_nce(
    query_QD: Tensor,
    document_ND: Tensor,
    positive_Q: Tensor,
    *,
    temperature: float | Tensor,
    forbidden_QN: Tensor | None = None,
    weight_Q: Tensor | None = None,
) -> Tensor:
    """InfoNCE (van den Oord et al. 2018, eq. 4): cross-entropy of each query's positive among all its candidates.

    Args:
        query_QD: query vectors, fp32 or bf16.
        document_ND: candidate document vectors, shared by all queries.
        positive_Q: int64, the column of each query's positive.
        temperature: divides the scores.
        forbidden_QN: bool, True where a document may not be a negative of the query (another known positive, a
            duplicate). The positive's own column always counts.
        weight_Q: factor of each query's loss; scale it to mean 1 for an ordinary weighted mean.

    Returns:
        The scalar mean over queries, in fp32.
    """
    labels = Labels(positive_Q, forbidden_QN, weight_Q)
    return contrastive(query_QD, document_ND, labels, temperature=temperature)


def contrastive(
    query_QD: Tensor,
    document_ND: Tensor,
    labels: Labels,
    *,
    temperature: float | Tensor,
    mask_margin: float | None = None,
    margin: float = 0.0,
    other_GD: Tensor | None = None,
) -> Tensor:
    """InfoNCE, and with ``other_GD`` and ``mask_margin`` 0.1 the loss of Qwen3-Embedding (arXiv 2506.05176, sect. 3.1).

    For query q with positive d+ it is ``-log(exp(s(q, d+) / t) / Z)``, where Z sums ``exp(s / t)`` over

    - s(q, d+), and s(q, d) for every other document: in-batch and hard negatives;
    - with ``other_GD``, s(q, q') for every other query, and s(d+, d) for every document of other queries (of the
      query's own hard negatives only s(q, d) counts).

    Left out of Z are what ``labels`` forbids (for d+ the same documents as for q), and what scores above
    s(q, d+) + ``mask_margin``: a likely unknown positive.

    Where ``labels.grade_QN`` has grades above 0 for several documents of a query, the loss is the cross-entropy to
    their shares: the sum over these documents of ``grade / sum of the query's grades * -log(exp(s(q, d) / t) / Z)``,
    all of them in Z; d+ remains ``positive_Q``.

    Args:
        margin: taken from the positives' scores before the softmax (Yang et al. 2019, arXiv 1902.08564).
        other_GD: the queries of all processes, as ``labels.related_QG`` names them.
    """
    score_QN = _scores(query_QD, document_ND)
    positive_Q1 = labels.positive_Q[:, None]
    wanted_QN = torch.zeros_like(score_QN, dtype=torch.bool).scatter_(1, positive_Q1, True)
    if labels.grade_QN is not None:
        wanted_QN = wanted_QN | (labels.grade_QN > 0)
    most_Q1 = None if mask_margin is None else score_QN.detach().gather(1, positive_Q1) + mask_margin
    logit_QN = _logits(score_QN, temperature, labels.forbidden_QN, most_Q1)
    logit_QN = torch.where(wanted_QN, (score_QN - margin) / temperature, logit_QN)
    parts = [logit_QN]
    if other_GD is not None:
        assert labels.related_QG is not None and labels.forbidden_QN is not None and labels.own_QN is not None
        parts.append(_logits(_scores(query_QD, other_GD), temperature, labels.related_QG, most_Q1))
        alike_QN = labels.forbidden_QN | labels.own_QN | wanted_QN
        parts.append(_logits(_scores(document_ND[labels.positive_Q], document_ND), temperature, alike_QN, most_Q1))
    logit_QM = torch.cat(parts, dim=1) if len(parts) > 1 else logit_QN
    if labels.grade_QN is None:
        loss_Q = torch.nn.functional.cross_entropy(logit_QM, labels.positive_Q, reduction="none")
    else:
        share_QN = torch.nn.functional.normalize(labels.grade_QN.clamp(min=0), p=1, dim=1)
        wanted_logit_QN = logit_QN.masked_fill(share_QN == 0, 0)  # 0 times -inf is no number
        loss_Q = logit_QM.logsumexp(dim=1) - (share_QN * wanted_logit_QN).sum(dim=1)
    return _weighted_mean(loss_Q, labels.weight_Q)


# ---------------------------------------------------------------------------------------------------- to given scores


def kl_to_scores(
    query_QD: Tensor,
    document_ND: Tensor,
    labels: Labels,
    *,
    temperature: float | Tensor,
    score_temperature: float = 1.0,
) -> Tensor:
    """KL divergence of the softmax of our scores from that of given ones (Lin et al. 2020, arXiv 2010.11386).

    Both are over the query's own documents, ``labels.own_QN``, whose given scores are ``labels.grade_QN``. There is no
    factor ``temperature ** 2``, which some put before it.

    Args:
        temperature: divides our scores.
        score_temperature: divides the given ones.
    """
    assert labels.own_QN is not None and labels.grade_QN is not None
    logit_QN = _scores(query_QD, document_ND) / temperature
    others_QN = ~labels.own_QN
    log_ours_QN = logit_QN.masked_fill(others_QN, float("-inf")).log_softmax(dim=1).masked_fill(others_QN, 0)
    given_QN = (labels.grade_QN.float() / score_temperature).masked_fill(others_QN, float("-inf"))
    log_given_QN = given_QN.log_softmax(dim=1)
    term_QN = log_given_QN.exp() * (log_given_QN.masked_fill(others_QN, 0) - log_ours_QN)
    return _weighted_mean(term_QN.sum(dim=1), labels.weight_Q)


def margin_mse(query_QD: Tensor, document_ND: Tensor, labels: Labels, *, score_temperature: float = 1.0) -> Tensor:
    """Squared difference of our margins and the given ones (Hofstätter et al. 2020, arXiv 2010.02666).

    A margin is the score of ``positive_Q`` less that of another of the query's own documents, ``labels.own_QN``; the
    mean over these, then over queries. A query without others counts as 0.

    Args:
        score_temperature: divides the given scores, ``labels.grade_QN``. Ours are cosines where vectors have length 1.
    """
    assert labels.own_QN is not None and labels.grade_QN is not None
    positive_Q1 = labels.positive_Q[:, None]
    score_QN, given_QN = _scores(query_QD, document_ND), labels.grade_QN.float() / score_temperature
    margin_QN = score_QN.gather(1, positive_Q1) - score_QN
    given_margin_QN = given_QN.gather(1, positive_Q1) - given_QN
    others_QN = labels.own_QN.scatter(1, positive_Q1, False)
    square_QN = (margin_QN - given_margin_QN).square() * others_QN
    return _weighted_mean(square_QN.sum(dim=1) / others_QN.sum(dim=1).clamp(min=1), labels.weight_Q)


def l2_alignment(student_QD: Tensor, teacher_QD: Tensor, *, weight_Q: Tensor | None = None) -> Tensor:
    """Squared Euclidean distance of the student's query vectors to the teacher's (HARNESS-LM, alignment phase).

    The sum over dimensions, the mean over queries: for unit vectors it is 2 - 2 cosine, whatever the dimension.

    Returns:
        A scalar in fp32.
    """
    return _weighted_mean((student_QD.float() - teacher_QD.float()).square().sum(dim=1), weight_Q)


# ------------------------------------------------------------------------------------------------- around any loss


def matryoshka(
    loss: Callable[..., Tensor], *vectors: Tensor, dimensions: Sequence[int], weights: Sequence[float] | None = None
) -> Tensor:
    """The weighted sum of a loss over the first ``d`` dimensions, d in ``dimensions`` (Kusupati et al. 2022, eq. 1).

    Vectors that are cut are made to have length 1 again. Weights are 1 unless given.

    Args:
        loss: called with the cut vectors, in their order.
    """
    weights = weights or [1.0] * len(dimensions)
    parts = [
        weight * loss(*(torch.nn.functional.normalize(vector.float()[:, :width], dim=-1) for vector in vectors))
        for width, weight in zip(dimensions, weights, strict=True)
    ]
    return torch.stack(parts).sum()


def learned_temperature(log_times_1: Tensor) -> Tensor:
    """The temperature that stands for a trained ``log_times_1``, the logarithm of what scores are multiplied by.

    Trained so, as in CLIP (Radford et al. 2021, sect. 2.5), a step changes it by a factor. See ``clamp_times``.
    """
    return torch.exp(-log_times_1)


@torch.no_grad()
def clamp_times(log_times_1: Tensor) -> None:
    """Bring ``log_times_1`` back, in place, to multiplying scores by 1 to 100 (CLIP), or softmaxes become steps."""
    log_times_1.clamp_(torch.tensor(FEWEST_TIMES).log().item(), torch.tensor(MOST_TIMES).log().item())
