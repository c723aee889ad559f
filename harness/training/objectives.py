"""Objectives: a batch in, gradients out, numbers to log. One method, ``step``; ``fit`` knows nothing more of them.

Axes: Q queries, N documents, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor, nn

from harness.runtime.distributed import gather
from harness.training.losses import info_nce, l2_alignment

Backward = Callable[..., None]  # backward(loss, sync=True); sync only with the last chunk of a step


class Objective(Protocol):
    """What ``fit`` asks of a stage."""

    def step(self, model: nn.Module, batch: Any, backward: Backward) -> Mapping[str, float]:
        """Compute the loss of one batch with the (wrapped) model, call ``backward``, return numbers to log."""
        ...


def forward_chunks(model: nn.Module, chunks: list[dict[str, Tensor]], restore: Tensor) -> Tensor:
    """Encode length-sorted chunks without padding across them; rows in the batch's order."""
    return model(chunks=chunks)[restore]


def anchored(loss: Tensor, anchor: Tensor | None, weight: float) -> tuple[Tensor, dict[str, Tensor]]:
    """``loss + weight * anchor`` and the parts to log."""
    if anchor is None:
        return loss, {"loss": loss}
    return loss + weight * anchor, {"loss": loss + weight * anchor, "contrastive": loss, "anchor": anchor}


def _numbers(parts: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in parts.items()}


@dataclass(frozen=True)
class Contrastive:
    """Stage 1: both towers are the model. Local queries against the documents of all processes.

    The batch: ``chunks, restore`` (queries first, then documents), ``queries`` (how many), ``positive_Q``,
    ``forbidden_QN``, ``weight_Q``. Columns are the gathered documents, in rank order.
    """

    temperature: float

    def step(self, model: nn.Module, batch: Mapping[str, Any], backward: Backward) -> dict[str, float]:
        """One merged forward over queries and documents, one backward."""
        vector_BD = forward_chunks(model, batch["chunks"], batch["restore"])
        query_QD, document_ND = vector_BD[: batch["queries"]], vector_BD[batch["queries"] :]
        loss = info_nce(
            query_QD,
            gather(document_ND),
            batch["positive_Q"],
            temperature=self.temperature,
            forbidden_QN=batch["forbidden_QN"],
            weight_Q=batch["weight_Q"],
        )
        backward(loss)
        return _numbers({"loss": loss})


@dataclass(frozen=True)
class Alignment:
    """Stage 2: the student's query vectors against cached ones of the teacher (``teacher_QD``)."""

    def step(self, model: nn.Module, batch: Mapping[str, Any], backward: Backward) -> dict[str, float]:
        """One forward over the queries, one backward."""
        student_QD = forward_chunks(model, batch["chunks"], batch["restore"])
        loss = l2_alignment(student_QD, batch["teacher_QD"], weight_Q=batch["weight_Q"])
        backward(loss)
        return _numbers({"loss": loss})


@dataclass(frozen=True)
class Refinement:
    """Stage 3: contrastive against frozen document vectors (``document_ND``), with an L2 anchor to the teacher."""

    temperature: float
    anchor: float

    def step(self, model: nn.Module, batch: Mapping[str, Any], backward: Backward) -> dict[str, float]:
        """One forward over the queries, one backward; the documents are constants."""
        student_QD = forward_chunks(model, batch["chunks"], batch["restore"])
        contrastive = info_nce(
            student_QD,
            batch["document_ND"],
            batch["positive_Q"],
            temperature=self.temperature,
            forbidden_QN=batch["forbidden_QN"],
            weight_Q=batch["weight_Q"],
        )
        anchor = l2_alignment(student_QD, batch["teacher_QD"], weight_Q=batch["weight_Q"]) if self.anchor else None
        loss, parts = anchored(contrastive, anchor, self.anchor)
        backward(loss)
        return _numbers(parts)
