"""Objectives: a batch in, gradients out, numbers to log. One method, ``step``; ``fit`` knows nothing more of them.

Axes: Q queries, N documents, D dimensions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from harness.recipe import LossSettings
from harness.runtime.distributed import gather
from harness.training.cached import Backward, learn
from harness.training.losses import (
    Labels,
    clamp_times,
    contrastive,
    info_nce,
    kl_to_scores,
    l2_alignment,
    learned_temperature,
    margin_mse,
    matryoshka,
)

LOG_TIMES = "log_times"  # the model's name of what a learned temperature is made of


class Objective(Protocol):
    """What ``fit`` asks of a stage."""

    def step(self, model: nn.Module, batch: Any, backward: Backward) -> Mapping[str, float]:
        """Compute the loss of one batch with the (wrapped) model, call ``backward``, return numbers to log."""
        ...


def anchored(loss: Tensor, anchor: Tensor | None, weight: float) -> dict[str, Tensor]:
    """``loss + weight * anchor``, and the parts to log."""
    if anchor is None:
        return {"loss": loss}
    return {"loss": loss + weight * anchor, "contrastive": loss, "anchor": anchor}


@dataclass(frozen=True)
class Contrastive:
    """Stage 1: both towers are the model. Local queries against the documents of all processes.

    The batch: ``chunks, restore`` (queries first, then documents), ``queries`` (how many), ``positive_Q``,
    ``forbidden_QN``, ``weight_Q``, and as ``loss`` needs them ``own_QN``, ``grade_QN``, ``related_QG``. Columns are the
    gathered documents, or queries, in rank order.

    Args:
        temperature: divides the scores; where it is learned, the model has a parameter ``log_times``.
        cached: the batch's chunks are encoded twice, and one at a time is in memory.
    """

    temperature: float
    loss: LossSettings = LossSettings()
    cached: bool = False

    def step(self, model: nn.Module, batch: Mapping[str, Any], backward: Backward) -> dict[str, float]:
        """One loss over queries and documents, one backward, or one for every chunk."""
        temperature: float | Tensor = self.temperature
        others: list[nn.Parameter] = []
        if self.loss.learned_temperature:
            others = [getattr(model, LOG_TIMES)]
            clamp_times(others[0])

        def losses(vector_BD: Tensor) -> dict[str, Tensor]:
            learned = learned_temperature(others[0]) if others else None
            found = self.losses(vector_BD, batch, temperature if learned is None else learned)
            return {"loss": found} | ({} if learned is None else {"temperature": learned})

        return learn(model, batch, losses, backward, cached=self.cached, others=others)

    def losses(self, vector_BD: Tensor, batch: Mapping[str, Any], temperature: float | Tensor) -> Tensor:
        """The loss of this process's queries."""
        query_QD, document_ND = vector_BD[: batch["queries"]], gather(vector_BD[batch["queries"] :])
        vectors = [query_QD, document_ND, *([gather(query_QD)] if self.loss.with_towers else [])]
        labels = Labels(
            batch["positive_Q"], batch["forbidden_QN"], batch["weight_Q"],
            own_QN=batch.get("own_QN"), grade_QN=batch.get("grade_QN"), related_QG=batch.get("related_QG"),
        )  # fmt: skip

        def loss(query_QD: Tensor, document_ND: Tensor, other_GD: Tensor | None = None) -> Tensor:
            settings = self.loss
            if settings.kind == "kl":
                return kl_to_scores(
                    query_QD, document_ND, labels, temperature=temperature,
                    score_temperature=settings.score_temperature,
                )  # fmt: skip
            if settings.kind == "margin_mse":
                return margin_mse(query_QD, document_ND, labels, score_temperature=settings.score_temperature)
            return contrastive(
                query_QD, document_ND, labels, temperature=temperature, mask_margin=settings.masks_above,
                margin=settings.margin, other_GD=other_GD,
            )  # fmt: skip

        if not self.loss.matryoshka:
            return loss(*vectors)
        return matryoshka(loss, *vectors, dimensions=self.loss.matryoshka, weights=self.loss.matryoshka_weights)


@dataclass(frozen=True)
class Alignment:
    """Stage 2: the student's query vectors against stored ones of the teacher (``teacher_QD``).

    Args:
        teacher: encodes each batch's ``teacher`` (``chunks, restore``) instead; it learns nothing.
    """

    cached: bool = False
    teacher: nn.Module | None = None

    def step(self, model: nn.Module, batch: Mapping[str, Any], backward: Backward) -> dict[str, float]:
        """One loss over the queries, one backward, or one for every chunk."""
        teacher_QD = batch["teacher_QD"] if self.teacher is None else _encoded(self.teacher, batch["teacher"])

        def losses(student_QD: Tensor) -> dict[str, Tensor]:
            return {"loss": l2_alignment(student_QD, teacher_QD, weight_Q=batch["weight_Q"])}

        return learn(model, batch, losses, backward, cached=self.cached)


@torch.no_grad()
def _encoded(teacher: nn.Module, tokens: Mapping[str, Any]) -> Tensor:
    """vector_QD, a chunk at a time; without a trace in the gradients, or in what autocast keeps of weights."""
    return torch.cat([teacher(chunks=[chunk]) for chunk in tokens["chunks"]])[tokens["restore"]]


@dataclass(frozen=True)
class Refinement:
    """Stage 3: contrastive against frozen document vectors (``document_ND``), with an L2 anchor to the teacher."""

    temperature: float
    anchor: float
    cached: bool = False

    def step(self, model: nn.Module, batch: Mapping[str, Any], backward: Backward) -> dict[str, float]:
        """One loss over the queries, one backward, or one for every chunk; the documents are constants."""

        def losses(student_QD: Tensor) -> dict[str, Tensor]:
            loss = info_nce(
                student_QD,
                batch["document_ND"],
                batch["positive_Q"],
                temperature=self.temperature,
                forbidden_QN=batch["forbidden_QN"],
                weight_Q=batch["weight_Q"],
            )
            anchor = l2_alignment(student_QD, batch["teacher_QD"], weight_Q=batch["weight_Q"]) if self.anchor else None
            return anchored(loss, anchor, self.anchor)

        return learn(model, batch, losses, backward, cached=self.cached)
