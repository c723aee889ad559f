"""A graph in fp32 made smaller: half precision, dynamic int8, int8 with measured ranges."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from harness.engines.deployed import OUTPUT
from harness.export.onnx.files import data_file, size_of

Feed = dict[str, np.ndarray]
# Sums of many squares leave half precision's range; ranges and indices are no matter of precision.
_IN_FULL = ("Pow", "ReduceMean", "ReduceSum", "ReduceL2", "Sqrt", "Softmax", "LpNormalization")
# The products with weights and the token table, which is most of a small model. What else is there takes no time.
_IN_INT8 = ["MatMul", "Gather"]
_LEAST_LENGTH = 1e-12  # what torch divides by at least


def make(precision: str, source: Path, target: Path, calibration: Sequence[Feed], *, normalised: bool) -> None:
    """Write ``target`` from a graph in fp32.

    Args:
        precision: ``fp16``, ``int8`` or ``int8-static``.
        calibration: what ``int8-static`` measures the ranges of activations on.
        normalised: whether the vectors have length 1.
    """
    with _quiet():
        if precision == "fp16":
            _to_half(source, target, normalised)
        elif precision == "int8":
            _quantise(source, target)
        else:
            assert precision == "int8-static" and calibration
            _quantise(source, target, calibration)


def _to_half(source: Path, target: Path, normalised: bool) -> None:
    """Weights and activations in half precision; inputs, output and what needs the range stay in fp32."""
    import onnx
    from onnxruntime.transformers import float16

    large = data_file(source, size_of(source))
    half = float16.convert_float_to_float16(
        onnx.load(str(source)), keep_io_types=True, disable_shape_infer=large is not None,
        op_block_list=[*float16.DEFAULT_OP_BLOCK_LIST, *_IN_FULL],
    )  # fmt: skip
    if normalised:
        _normalise_again(half)
    data = data_file(target, size_of(source) // 2)
    onnx.save_model(half, str(target), save_as_external_data=data is not None, location=data)


def _normalise_again(graph: Any) -> None:
    """Vectors whose length was divided out in half precision are off by as much as that can't hold: 1 in 2,000.

    A row of padding alone may be a vector of length 0, and stays one, as in torch.
    """
    from onnx import TensorProto, helper

    vectors, axis, least = f"{OUTPUT}_rounded", f"{OUTPUT}_axis", f"{OUTPUT}_least"
    length, divisor = f"{OUTPUT}_length", f"{OUTPUT}_divisor"
    for node in graph.graph.node:
        node.output[:] = [vectors if name == OUTPUT else name for name in node.output]
        node.input[:] = [vectors if name == OUTPUT else name for name in node.input]
    graph.graph.initializer.append(helper.make_tensor(axis, TensorProto.INT64, [1], [1]))
    graph.graph.initializer.append(helper.make_tensor(least, TensorProto.FLOAT, [], [_LEAST_LENGTH]))
    graph.graph.node.append(helper.make_node("ReduceL2", [vectors, axis], [length], keepdims=1))
    graph.graph.node.append(helper.make_node("Max", [length, least], [divisor]))
    graph.graph.node.append(helper.make_node("Div", [vectors, divisor], [OUTPUT]))


def _quantise(source: Path, target: Path, calibration: Sequence[Feed] = ()) -> None:
    """Weights in int8, a scale for each column; activations in int8 by their own range, or by one measured before."""
    from onnxruntime.quantization import CalibrationDataReader, QuantType, quantize_dynamic, quantize_static

    common: dict[str, Any] = {
        "op_types_to_quantize": _IN_INT8, "per_channel": True, "weight_type": QuantType.QInt8,
        "use_external_data_format": data_file(target, size_of(source)) is not None,
        "extra_options": {"MatMulConstBOnly": True},
    }  # fmt: skip
    if not calibration:
        quantize_dynamic(source, target, **common)
        return

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self._feeds = iter(calibration)

        def get_next(self) -> Feed | None:
            return next(self._feeds, None)

    quantize_static(source, target, Reader(), activation_type=QuantType.QUInt8, **common)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """The quantiser advises a preparation that these graphs had already."""
    level = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        yield
    finally:
        logging.disable(level)
