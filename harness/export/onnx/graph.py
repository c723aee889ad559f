"""An encoder as one ONNX graph: token ids and mask in, the finished vector out.

Axes: B rows, L tokens, D dimensions.
"""

from __future__ import annotations

import contextlib
import copy
import io
import logging
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.engines.deployed import OUTPUT
from harness.engines.onnx_runtime import open_session
from harness.export.onnx.files import data_file
from harness.runtime.errors import RunError
from harness.runtime.process import logger

if TYPE_CHECKING:
    from onnx_ir import Model

    from harness.encoders.encoder import Encoder

OPSET = 18
TOLERANCE = 1e-5  # of an element, relative to the vectors' largest: what fp32 may differ by
_HIDE = -1e4  # added to the scores of padding: exp makes 0 of it, and half precision can hold it
# Every token sees every other one, and places are counted from token ids alone: a mask of four axes says it all.
_SEE_ALL = frozenset({"bert", "roberta", "xlm-roberta", "camembert"})


class _PlainMask(nn.Module):
    """A backbone that is given its mask ready-made: computing it is a quarter of a small graph's operations."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:
        bias_B11L = (1.0 - attention_mask[:, None, None, :].to(torch.float32)) * _HIDE
        return self.backbone(input_ids=input_ids, attention_mask=bias_B11L)


class _Graph(nn.Module):
    def __init__(self, encoder: Encoder) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        vector_BD: Tensor = self.encoder(input_ids, attention_mask)
        return vector_BD


def write_graph(encoder: Encoder, path: Path) -> str:
    """Write the encoder's graph in fp32: backbone, pooling, projection, tanh and normalisation.

    Inputs ``input_ids`` and ``attention_mask`` (int64, batch x length, both free), output ``sentence_embedding``
    (float32, batch x D). Token types, where a model has them, are those of a single text, inside the graph: servers
    feed them only where a graph asks. Of several forms of the graph the first is taken that gives the encoder's
    vectors, on lengths and paddings that the exporter did not see.

    Args:
        encoder: in fp32, on the CPU.
        path: ``NAME.onnx``; weights beyond what one file can hold lie beside it in ``NAME.onnx_data``.

    Returns:
        The form that was taken, in words.

    Raises:
        RunError: no form gives the encoder's vectors; it says how each failed.
    """
    batches = [_probe(encoder, lengths) for lengths in ((1,), (5, 11, 2), (min(encoder.max_length, 64),))]
    expected = [_encode(encoder, batch) for batch in batches]
    masks: list[tuple[str, ...]] = [("plain mask",), ()] if encoder.backbone.config.model_type in _SEE_ALL else [()]
    forms = [(*mask, *fused) for fused in (("fused",), ()) for mask in masks]
    failed = []
    for form in forms:
        name = ", ".join(form) or "as exported"
        try:
            graph = _trace(_with_plain_mask(encoder) if "plain mask" in form else encoder)
            _save(_fused(graph) if "fused" in form else graph, path)
            worst = _difference(path, batches, expected)
        except Exception as error:  # exporter and runtime raise many kinds: this form won't do
            reason = (str(error).strip().splitlines() or [""])[0][:200]
            failed.append(f"{name}: {type(error).__name__}: {reason}")
            continue
        if worst <= TOLERANCE:
            for line in failed:
                logger.info("onnx: a faster form of the graph was left out: %s", line)
            return name
        failed.append(f"{name}: its vectors differ by {worst:.1e}")
    raise RunError("the model can't be exported to ONNX\n    " + "\n    ".join(failed))


def _probe(encoder: Encoder, lengths: tuple[int, ...]) -> dict[str, np.ndarray]:
    """A batch of so long rows of random tokens, padded as the tokenizer pads."""
    random = np.random.default_rng(0)
    width, left = max(lengths), encoder.tokenizer.padding_side == "left"
    token_BL = np.full((len(lengths), width), encoder.tokenizer.pad_token_id, dtype=np.int64)
    mask_BL = np.zeros_like(token_BL)
    for row, length in enumerate(lengths):
        where = slice(width - length, width) if left else slice(length)
        token_BL[row, where] = random.integers(encoder.token_table.num_embeddings, size=length)
        mask_BL[row, where] = 1
    return {"input_ids": token_BL, "attention_mask": mask_BL}


@torch.inference_mode()
def _encode(encoder: Encoder, batch: dict[str, np.ndarray]) -> np.ndarray:
    vector_BD: np.ndarray = encoder(**{name: torch.from_numpy(array) for name, array in batch.items()}).numpy()
    return vector_BD


def _difference(path: Path, batches: list[dict[str, np.ndarray]], expected: list[np.ndarray]) -> float:
    """The largest difference of an element, relative to the largest element; infinite where one is not a number."""
    session, worst = open_session(path, threads=1), 0.0
    for batch, vector_BD in zip(batches, expected, strict=True):
        found_BD = session.run([OUTPUT], batch)[0]
        if found_BD.shape != vector_BD.shape or not np.isfinite(found_BD).all():
            return float("inf")
        worst = max(worst, float(np.abs(found_BD - vector_BD).max() / max(np.abs(vector_BD).max(), 1e-9)))
    return worst


def _with_plain_mask(encoder: Encoder) -> Encoder:
    """The same encoder, its weights shared, around ``_PlainMask``."""
    other = copy.copy(encoder)
    other._modules = {**encoder._modules, "backbone": _PlainMask(encoder.backbone)}
    return other


def _trace(encoder: Encoder) -> Model:
    """The graph as torch's exporter makes it. Batch and length are free; an example of one row would fix the batch."""
    token_BL = torch.ones((3, 11), dtype=torch.int64)
    free = {0: "batch", 1: "length"}
    with _quiet(), torch.no_grad():
        program = torch.onnx.export(
            _Graph(encoder).eval(), (token_BL, torch.ones_like(token_BL)), dynamo=True, dynamic_shapes=(free, free),
            opset_version=OPSET, input_names=["input_ids", "attention_mask"], output_names=[OUTPUT], verbose=False,
        )  # fmt: skip
    assert program is not None
    return program.model


def _fused(graph: Model) -> Model:
    """Attention, layer norms and GELU as ONNX Runtime's own operators."""
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    with _quiet():
        graph, _ = optimize_for_ort(graph)
    return graph


def _save(graph: Model, path: Path) -> None:
    """Write the graph without the exporter's notes, which hold the names of this machine's files, and without weights'
    shapes told twice: the quantiser transposes a weight and corrects one of them."""
    import onnx
    import onnx_ir
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(graph)
    size = sum(value.const_value.nbytes for value in graph.graph.initializers.values() if value.const_value is not None)
    onnx_ir.save(graph, path, external_data=data_file(path, size))
    written = onnx.load(path, load_external_data=False)
    weights = {weight.name for weight in written.graph.initializer}
    told = [value for value in written.graph.value_info if value.name not in weights]
    del written.graph.value_info[:]
    written.graph.value_info.extend(told)
    onnx.save(written, path)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The exporter prints its progress and warns of what it skips; what matters is compared, and raised."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(level)
