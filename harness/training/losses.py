"""Losses: pure functions of tensors, called by objectives and nowhere else.

Axes: Q queries, N documents, D dimensions.
"""

from __future__ import annotations

import torch
from torch import Tensor


def _weighted_mean(value_Q: Tensor, weight_Q: Tensor | None) -> Tensor:
    return value_Q.mean() if weight_Q is None else (value_Q * weight_Q).mean()


def info_nce(
    query_QD: Tensor,
    document_ND: Tensor,
    positive_Q: Tensor,
    *,
    temperature: float,
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
    # Scores in fp32 also under autocast: bf16 rounds a cosine near 1 by up to 0.002, which a temperature of 0.05
    # turns into 0.04 of a logit.
    with torch.autocast(query_QD.device.type, enabled=False):
        score_QN = query_QD.float() @ document_ND.float().T / temperature
    if forbidden_QN is not None:
        keep = torch.zeros_like(forbidden_QN).scatter_(1, positive_Q[:, None], True)
        score_QN = score_QN.masked_fill(forbidden_QN & ~keep, float("-inf"))
    return _weighted_mean(torch.nn.functional.cross_entropy(score_QN, positive_Q, reduction="none"), weight_Q)


def l2_alignment(student_QD: Tensor, teacher_QD: Tensor, *, weight_Q: Tensor | None = None) -> Tensor:
    """Squared Euclidean distance of the student's query vectors to the teacher's (HARNESS-LM, alignment phase).

    The sum over dimensions, the mean over queries: for unit vectors it is 2 - 2 cosine, whatever the dimension.

    Returns:
        A scalar in fp32.
    """
    return _weighted_mean((student_QD.float() - teacher_QD.float()).square().sum(dim=1), weight_Q)
