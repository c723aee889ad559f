"""ONNX files give the encoder's vectors, whatever model, text, batch and padding; edited ones are refused."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from builders.deployable import KINDS, TEXTS, Exported, exported, write_deployable

from harness.engines.deployed import MODEL_FILES, onnx_precisions, read_onnx_manifest
from harness.engines.onnx_runtime import OnnxEngine, open_session
from harness.engines.protocol import Engine
from harness.engines.tokeniser import Tokens
from harness.engines.torch_eager import TorchEngine
from harness.export.onnx import export_onnx, files, graph, remove_onnx
from harness.export.triton import write_triton
from harness.runtime.errors import InputError, RunError, StaleArtefactError


@pytest.fixture(params=KINDS)
def model(request: pytest.FixtureRequest) -> Exported:
    return exported(request.param)


@pytest.fixture
def bert() -> Exported:
    return exported("bert")


def cosines(one_ND: np.ndarray, other_ND: np.ndarray) -> np.ndarray:
    lengths_N = np.linalg.norm(one_ND, axis=1) * np.linalg.norm(other_ND, axis=1)
    return np.asarray((one_ND * other_ND).sum(axis=1) / lengths_N)


# ------------------------------------------------------------------------------------------------------- vectors


def test_fp32_gives_the_encoders_vectors(model: Exported) -> None:
    engine: Engine = OnnxEngine(model.folder, threads=1)
    expected_ND = model.expected(TEXTS)
    assert np.abs(cosines(expected_ND[:1], expected_ND[3:])).max() < 0.9999, "equal texts would tell nothing"
    scale = np.abs(expected_ND).max()
    one_by_one_ND = np.concatenate([engine.encode([text]) for text in TEXTS])
    assert one_by_one_ND.dtype == np.float32
    np.testing.assert_allclose(one_by_one_ND / scale, expected_ND / scale, atol=1e-5)
    np.testing.assert_allclose(engine.encode(TEXTS) / scale, expected_ND / scale, atol=1e-5)  # padded to 512
    np.testing.assert_allclose(engine.encode(TEXTS[:9]) / scale, expected_ND[:9] / scale, atol=1e-5)


def test_every_length_is_free(model: Exported) -> None:
    engine = OnnxEngine(model.folder, threads=1)
    texts = ["hat " * count for count in range(1, 24)]
    lengths = {engine.tokenise([text]).input_ids.shape[1] for text in texts}
    assert len(lengths) > 20
    expected_ND = model.expected(texts)
    found_ND = np.concatenate([engine.encode([text]) for text in texts])
    np.testing.assert_allclose(found_ND, expected_ND, atol=1e-5 * np.abs(expected_ND).max())


@pytest.mark.parametrize(
    ("kind", "precision", "least"),
    [("bert", "fp16", 0.9999), ("bert", "int8", 0.98), ("bert", "int8-static", 0.9),
     ("qwen3", "fp16", 0.9999), ("qwen3", "int8", 0.98)],
)  # fmt: skip
def test_smaller_ones_stay_close(kind: str, precision: str, least: float) -> None:
    model = exported(kind)
    engine = OnnxEngine(model.folder, precision=precision, threads=1)
    found_ND = np.concatenate([engine.encode([text]) for text in TEXTS])
    expected_ND = model.expected(TEXTS)
    assert found_ND.dtype == np.float32
    assert cosines(found_ND, expected_ND).min() > least
    assert np.abs(found_ND - expected_ND).max() > 1e-5, "this is fp32"
    if precision == "fp16":
        np.testing.assert_allclose(np.linalg.norm(found_ND, axis=1), 1, atol=1e-6)


@pytest.mark.parametrize("kind", ["bert", "qwen3", "modernbert"])
def test_a_row_without_a_token_gives_numbers_and_leaves_its_neighbours_alone(kind: str, tmp_path: Path) -> None:
    """A server may pad a batch with empty rows. The mean over nothing is 0, and so is its length."""
    folder, precisions = exported(kind).folder, ["fp32", "fp16", "int8"]
    if kind == "modernbert":  # of these the one without a projection
        folder, precisions = tmp_path / "model", ["fp32", "fp16"]
        export_onnx(write_deployable(kind, folder), folder, precisions)
    for precision in precisions:
        engine = OnnxEngine(folder, precision=precision, threads=1)
        tokens = engine.tokenise(["a blue coat for a cold winter", "hat hat hat"])
        mask_BL = tokens.attention_mask.copy()
        mask_BL[1] = 0
        found_BD = engine.forward(Tokens(tokens.input_ids, mask_BL))
        assert np.isfinite(found_BD).all(), precision
        assert cosines(found_BD[:1], engine.forward(tokens)[:1]).min() > 0.999, precision
        assert np.isfinite(engine.forward(Tokens(tokens.input_ids, np.zeros_like(mask_BL)))).all(), precision


def test_smaller_ones_are_smaller(bert: Exported) -> None:
    weights = {precision: onnx.load(bert.folder / "onnx" / MODEL_FILES[precision]).graph.initializer
               for precision in ("fp32", "int8")}  # fmt: skip
    table = bert.encoder.token_table.weight.numel()
    large = {name: [tensor.data_type for tensor in tensors if np.prod(tensor.dims) >= table]
             for name, tensors in weights.items()}  # fmt: skip
    assert onnx.TensorProto.FLOAT in large["fp32"]
    assert set(large["int8"]) <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}, "the token table is not left out"


def test_names_and_free_axes(model: Exported) -> None:
    graph = onnx.load(model.folder / "onnx" / "model.onnx").graph
    shapes = {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*graph.input, *graph.output]
    }
    assert shapes == {"input_ids": ["batch", "length"], "attention_mask": ["batch", "length"],
                      "sentence_embedding": ["batch", model.encoder.dimension]}  # fmt: skip


def test_no_names_of_this_machine_inside(bert: Exported) -> None:
    for path in (bert.folder / "onnx").iterdir():
        assert b"site-packages" not in path.read_bytes() and str(Path.cwd()).encode() not in path.read_bytes()


def test_the_encoder_stays_as_it_is_and_bf16_is_exported_in_fp32(tmp_path: Path) -> None:
    encoder = write_deployable("bert", tmp_path / "model")
    expected_ND = TorchEngine(encoder).encode(TEXTS[:4])
    encoder.backbone.to(torch.bfloat16)
    encoder.train()
    before = encoder.backbone.config._attn_implementation
    export_onnx(encoder, tmp_path / "model", ["fp32"])
    assert encoder.training and encoder.backbone.config._attn_implementation == before
    assert encoder.token_table.weight.dtype == torch.bfloat16 and encoder.token_table.weight.requires_grad
    assert 0.99 < cosines(OnnxEngine(tmp_path / "model", threads=1).encode(TEXTS[:4]), expected_ND).min() < 0.999999


def test_a_faster_form_that_is_wrong_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mask that hides nothing shows in padded batches only: the next form is taken."""
    monkeypatch.setattr(graph, "_HIDE", 0.0)
    encoder = write_deployable("bert", tmp_path / "model")
    export_onnx(encoder, tmp_path / "model", ["fp32"])
    assert "plain mask" not in read_onnx_manifest(tmp_path / "model")["form"]
    found_ND = OnnxEngine(tmp_path / "model", threads=1).encode(TEXTS)
    np.testing.assert_allclose(found_ND, TorchEngine(encoder).encode(TEXTS), atol=1e-5)


def test_a_model_that_no_form_is_right_for_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(_: object) -> None:
        raise ValueError("no translation for this operator\nand a page of advice")

    monkeypatch.setattr(graph, "_trace", refuses)
    encoder = write_deployable("xlm-roberta", tmp_path / "model")
    with pytest.raises(RunError) as failure:
        export_onnx(encoder, tmp_path / "model", ["fp32"])
    told = str(failure.value).splitlines()
    assert told[0] == "the model can't be exported to ONNX" and len(told) == 5
    assert told[4].strip() == "as exported: ValueError: no translation for this operator"
    assert not (tmp_path / "model" / "onnx").exists()


def test_weights_beyond_one_file_lie_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "LARGEST", 1000)
    encoder = write_deployable("bert", tmp_path / "model")
    export_onnx(encoder, tmp_path / "model", ["fp32", "fp16", "int8"])
    names = {path.name for path in (tmp_path / "model" / "onnx").iterdir()}
    assert {"model.onnx_data", "model_fp16.onnx_data"} <= names
    expected_ND = TorchEngine(encoder).encode(TEXTS[:4])
    for precision in ("fp32", "fp16", "int8"):
        found_ND = OnnxEngine(tmp_path / "model", precision=precision, threads=1).encode(TEXTS[:4])
        assert cosines(found_ND, expected_ND).min() > 0.98
    write_triton(tmp_path / "model", tmp_path / "triton")  # there it must keep its name, by which it is found
    for name in ("student", "student-fp16"):
        open_session(tmp_path / "triton" / name / "1" / "model.onnx", threads=1)
    data = tmp_path / "model" / "onnx" / "model.onnx_data"
    data.write_bytes(data.read_bytes()[:-1] + b"?")
    with pytest.raises(StaleArtefactError, match="model.onnx_data: not the file that was exported"):
        OnnxEngine(tmp_path / "model")


# ------------------------------------------------------------------------------------------------------- refusals


@pytest.fixture
def copied(bert: Exported, tmp_path: Path) -> Path:
    shutil.copytree(bert.folder, tmp_path / "model")
    return tmp_path / "model"


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("onnx/model.onnx", "model.onnx: not the file that was exported"),
        ("tokenizer.json", "tokenizer.json: not the file that was exported"),
        ("config_sentence_transformers.json", "config_sentence_transformers.json: not the file"),
        ("2_Dense/config.json", "2_Dense/config.json: not the file"),
        ("onnx/harness.json", "harness.json: edited or damaged"),
        ("model.safetensors", "not the weights that the ONNX files were made from"),
    ],
)
def test_a_changed_file_is_refused_by_name(copied: Path, name: str, told: str) -> None:
    path = copied / name
    if name.endswith(".json"):
        value = json.loads(path.read_text())
        value["added"] = 1
        path.write_text(json.dumps(value))
    else:
        content = bytearray(path.read_bytes())
        content[-1] ^= 1
        path.write_bytes(bytes(content))
    with pytest.raises(StaleArtefactError, match=told):
        OnnxEngine(copied)


def test_another_file_or_model_is_refused(copied: Path, tmp_path: Path) -> None:
    shutil.copy(copied / "onnx" / "model_int8.onnx", copied / "onnx" / "model.onnx")
    with pytest.raises(StaleArtefactError, match=r"model\.onnx: not the file that was exported"):
        OnnxEngine(copied)
    write_deployable("xlm-roberta", tmp_path / "other")
    shutil.copytree(copied / "onnx", tmp_path / "other" / "onnx")  # whole and sealed, but of another model
    with pytest.raises(StaleArtefactError, match=r"config\.json: not the file(.|\n)*not the weights that"):
        OnnxEngine(tmp_path / "other", precision="int8")


def test_weights_may_be_left_out_where_onnx_is_deployed(copied: Path, bert: Exported) -> None:
    (copied / "model.safetensors").unlink()
    with_ND, without_ND = (OnnxEngine(folder, threads=1).encode(TEXTS) for folder in (bert.folder, copied))
    np.testing.assert_array_equal(without_ND, with_ND)


def test_what_is_missing_is_told(copied: Path) -> None:
    with pytest.raises(InputError, match="no such precision(.|\n)*got: int4"):
        OnnxEngine(copied, precision="int4")
    with pytest.raises(InputError, match="no such provider"):
        OnnxEngine(copied, providers=["NoSuchExecutionProvider"])
    (copied / "tokenizer.json").unlink()
    (copied / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="adapter that is not merged(.|\n)*has no tokenizer"):
        OnnxEngine(copied)
    shutil.rmtree(copied / "onnx")
    assert onnx_precisions(copied) == []


def test_wrong_wishes_are_refused_at_once(tmp_path: Path) -> None:
    encoder = write_deployable("bert", tmp_path / "model")
    with pytest.raises(InputError, match="no such precision(.|\n)*got: int4(.|\n)*int8-static needs texts"):
        export_onnx(encoder, tmp_path / "model", ["int4", "int8-static"])
    tokenizer = json.loads((tmp_path / "model" / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (tmp_path / "model" / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match="does not make the tokens that the encoder reads"):
        export_onnx(encoder, tmp_path / "model", ["fp32"])


def test_a_precision_that_fails_can_be_taken_away(copied: Path) -> None:
    remove_onnx(copied, ["int8", "fp16", "int8-static"])
    assert onnx_precisions(copied) == ["fp32"]
    assert sorted(path.name for path in (copied / "onnx").iterdir()) == ["harness.json", "model.onnx"]
    OnnxEngine(copied)
    with pytest.raises(InputError, match="no ONNX file of this precision(.|\n)*got: int8(.|\n)*allowed: fp32"):
        OnnxEngine(copied, precision="int8")
    remove_onnx(copied, ["fp32"])
    assert not (copied / "onnx").exists()
