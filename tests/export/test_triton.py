"""The Triton repository: its configuration parses as Triton's message does, names what the graph has, and is whole."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest
from builders.deployable import TEXTS, exported, write_deployable
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory, text_format

from harness.engines.onnx_runtime import OnnxEngine, open_session
from harness.export.triton import write_triton
from harness.runtime.errors import InputError

# The part of Triton's model_config.proto that is written: field -> (number, type, repeated). Source:
# github.com/triton-inference-server/common, protobuf/model_config.proto; a field that it lacks is a parse error.
INT32, INT64, UINT64, STRING, MESSAGE, ENUM = 5, 3, 4, 9, 11, 14
MESSAGES: dict[str, dict[str, tuple[int, int, bool, str]]] = {
    "ModelInput": {"name": (1, STRING, False, ""), "data_type": (2, ENUM, False, ".t.DataType"),
                   "dims": (4, INT64, True, "")},
    "ModelOutput": {"name": (1, STRING, False, ""), "data_type": (2, ENUM, False, ".t.DataType"),
                    "dims": (3, INT64, True, "")},
    "ModelDynamicBatching": {"preferred_batch_size": (1, INT32, True, ""),
                             "max_queue_delay_microseconds": (2, UINT64, False, "")},
    "ModelConfig": {"name": (1, STRING, False, ""), "backend": (17, STRING, False, ""),
                    "max_batch_size": (4, INT32, False, ""), "input": (5, MESSAGE, True, ".t.ModelInput"),
                    "output": (6, MESSAGE, True, ".t.ModelOutput"),
                    "dynamic_batching": (11, MESSAGE, False, ".t.ModelDynamicBatching")},
}  # fmt: skip
TYPES = {"TYPE_INT64": 5, "TYPE_FP16": 10, "TYPE_FP32": 11}
ONNX_TYPES = {onnx.TensorProto.INT64: "TYPE_INT64", onnx.TensorProto.FLOAT: "TYPE_FP32"}


def parse(text: str) -> Any:
    file = descriptor_pb2.FileDescriptorProto(name="t.proto", package="t", syntax="proto3")
    kind = file.enum_type.add(name="DataType")
    for name, number in {"TYPE_INVALID": 0, **TYPES}.items():
        kind.value.add(name=name, number=number)
    for message, fields in MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, of, repeated, type_name) in fields.items():
            described.field.add(name=name, number=number, type=of, label=1 + 2 * repeated, type_name=type_name or None)
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return text_format.Parse(text, message_factory.GetMessageClass(pool.FindMessageTypeByName("t.ModelConfig"))())


def test_a_server_finds_what_it_needs(tmp_path: Path) -> None:
    folder = exported("bert").folder
    names = write_triton(folder, tmp_path / "triton", max_batch=8)
    assert names == ["student", "student-fp16", "student-int8", "student-int8-static"]
    folders = sorted(path.name for path in (tmp_path / "triton").iterdir())
    assert folders == names
    engine = OnnxEngine(folder, threads=1)
    tokens = engine.tokenise(TEXTS[:4])
    feed = {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}
    for name in folders:
        config = parse((tmp_path / "triton" / name / "config.pbtxt").read_text())
        path = tmp_path / "triton" / name / "1" / "model.onnx"
        assert (config.name, config.backend, config.max_batch_size) == (name, "onnxruntime", 8)
        assert config.dynamic_batching.max_queue_delay_microseconds == 500
        graph = onnx.load(path, load_external_data=False).graph
        for told, values in ((config.input, graph.input), (config.output, graph.output)):
            found = {value.name: value.type.tensor_type for value in values}
            assert {value.name for value in told} == set(found)
            for value in told:
                assert TYPES[ONNX_TYPES[found[value.name].elem_type]] == value.data_type
                # The first axis, the batch, is not named.
                assert list(value.dims) == [dim.dim_value or -1 for dim in found[value.name].shape.dim][1:]
        vector_BD = open_session(path, threads=1).run(None, feed)[0]
        assert (vector_BD * engine.forward(tokens)).sum(axis=1).min() > (0.9 if "int8" in name else 0.9999)


def test_what_cannot_be_served_is_refused(tmp_path: Path) -> None:
    write_deployable("bert", tmp_path / "model")
    with pytest.raises(InputError, match="no ONNX files"):
        write_triton(tmp_path / "model", tmp_path / "triton")
    with pytest.raises(InputError, match="not a name for a model"):
        write_triton(exported("bert").folder, tmp_path / "triton", name="../x")
    assert not (tmp_path / "triton").exists()


def test_a_misspelt_field_does_not_parse() -> None:
    with pytest.raises(text_format.ParseError):
        parse('name: "student" max_batch: 8')
