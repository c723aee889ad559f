from __future__ import annotations

import json
import shutil
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.encoders.chain import backbone_files, describe_folder, read_chain, weights_sha256
from harness.encoders.folder import open_encoder, save_encoder
from harness.encoders.surgery import add_projection
from harness.runtime.errors import InputError

Edit = Callable[[dict[str, Any]], None]
TRANSFORMER = {"path": "", "type": "sentence_transformers.models.Transformer"}
POOLING = {"path": "1_Pooling", "type": "sentence_transformers.models.Pooling"}
DENSE = {"path": "2_Dense", "type": "sentence_transformers.models.Dense"}
NORMALIZE = {"path": "3_Normalize", "type": "sentence_transformers.models.Normalize"}


@pytest.fixture
def projected(tiny_bert: Path, tmp_path: Path) -> Path:
    """A folder with all four kinds of modules, to be edited."""
    encoder = open_encoder(tiny_bert)
    add_projection(encoder, torch.randn(8, 32), torch.randn(8))
    save_encoder(encoder, tmp_path / "projected")
    return tmp_path / "projected"


def edit(path: Path, **changes: Any) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps({key: entry for key, entry in {**value, **changes}.items() if entry != "DROP"}))


def chain_of(folder: Path, *modules: dict[str, str]) -> None:
    (folder / "modules.json").write_text(json.dumps(modules))


def test_reads_what_we_save(projected: Path) -> None:
    chain = read_chain(projected)
    assert (chain.pooling, chain.normalize, chain.max_length, chain.lower_case) == ("mean", True, 64, False)
    assert [(dense.in_features, dense.out_features, dense.bias, dense.tanh) for dense in chain.dense] == [
        (32, 8, True, False)
    ]
    assert chain.prompts == {"query": "", "document": ""}


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"pooling_mode": "cls"}, "cls"),
        ({"pooling_mode": ["lasttoken"]}, "lasttoken"),
        ({"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}, "cls"),
        ({"pooling_mode_lasttoken": True, "include_prompt": True}, "lasttoken"),
        ({"word_embedding_dimension": 32}, "mean"),
    ],
)
def test_pooling_in_both_forms(config: dict[str, Any], expected: str, projected: Path) -> None:
    (projected / "1_Pooling" / "config.json").write_text(json.dumps(config))
    assert read_chain(projected).pooling == expected


@pytest.mark.parametrize(
    ("config", "named"),
    [
        ({"pooling_mode": "max"}, "max"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": True}, r"cls \+ mean"),
        ({"pooling_mode_mean_sqrt_len_tokens": True}, "mean_sqrt_len_tokens"),
        ({"pooling_mode": "mean", "include_prompt": False}, "include_prompt: false"),
    ],
)
def test_other_poolings_are_refused(config: dict[str, Any], named: str, projected: Path) -> None:
    (projected / "1_Pooling" / "config.json").write_text(json.dumps(config))
    with pytest.raises(InputError, match=f"1_Pooling.*pooling(.|\n)*got: {named}(.|\n)*allowed: "):
        read_chain(projected)


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([TRANSFORMER, POOLING, {"path": "2_LSTM", "type": "sentence_transformers.models.LSTM"}], "models.LSTM"),
        ([TRANSFORMER, {"path": "1", "type": "custom.MyPooling"}], "custom.MyPooling"),
        ([TRANSFORMER, POOLING, NORMALIZE, DENSE], "got: T P N D"),
        ([TRANSFORMER, POOLING, NORMALIZE, NORMALIZE], "got: T P N N"),
        ([TRANSFORMER, DENSE, POOLING], "got: T D P"),
        ([TRANSFORMER], "got: T\n"),
        ([TRANSFORMER, {**POOLING, "path": "../elsewhere"}], "outside of the model's folder"),
        ([{**TRANSFORMER, "path": "0_Transformer"}, POOLING], "in the folder's root"),
    ],
)
def test_other_chains_are_refused(modules: list[dict[str, str]], message: str, projected: Path) -> None:
    chain_of(projected, *modules)
    with pytest.raises(InputError, match=message):
        read_chain(projected)


def test_all_problems_are_named_at_once(projected: Path) -> None:
    (projected / "1_Pooling" / "config.json").write_text('{"pooling_mode": "max"}')
    edit(projected / "2_Dense" / "config.json", activation_function="torch.nn.modules.activation.GELU")
    with pytest.raises(InputError) as caught:
        read_chain(projected)
    assert [problem.got for problem in caught.value.problems] == ["max", "torch.nn.modules.activation.GELU"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"activation_function": "os.system"}, "activation(.|\n)*os.system"),
        ({"use_residual": True}, "use_residual: True"),
        ({"module_input_name": "token_embeddings"}, "module_input_name: token_embeddings"),
    ],
)
def test_other_dense_modules_are_refused(changes: dict[str, Any], message: str, projected: Path) -> None:
    edit(projected / "2_Dense" / "config.json", **changes)
    with pytest.raises(InputError, match=message):
        read_chain(projected)


def test_dense_weights_must_be_safetensors(projected: Path) -> None:
    (projected / "2_Dense" / "model.safetensors").rename(projected / "2_Dense" / "pytorch_model.bin")
    with pytest.raises(InputError, match="without safetensors"):
        read_chain(projected)


@pytest.mark.parametrize(
    ("saved", "expected"),
    [
        ({"prompts": {"query": "q: ", "passage": "p: "}}, {"query": "q: ", "document": "p: "}),
        ({"prompts": {"query": "q: ", "document": None}}, {"query": "q: ", "document": ""}),
        ({"prompts": {"any": "x "}, "default_prompt_name": "any"}, {"query": "x ", "document": "x "}),
        ({"prompts": {"any": "x ", "query": ""}, "default_prompt_name": "any"}, {"query": "", "document": "x "}),
        ({}, {"query": "", "document": ""}),
    ],
)
def test_prompts_as_sentence_transformers_chooses_them(
    saved: dict[str, Any], expected: dict[str, str], projected: Path
) -> None:
    (projected / "config_sentence_transformers.json").write_text(json.dumps(saved))
    assert read_chain(projected).prompts == expected


@pytest.mark.parametrize("model", ["tiny_bert", "tiny_qwen3", "projected"])
def test_describe_counts_like_the_loaded_model(model: str, request: pytest.FixtureRequest) -> None:
    folder = request.getfixturevalue(model)
    encoder, told = open_encoder(folder), describe_folder(folder)
    assert told["parameters"] == encoder.parameter_count
    assert told["parameters_without_embeddings"] == encoder.parameters_without_embeddings
    assert (told["layers"], told["dimension"]) == (encoder.layer_count, encoder.dimension)
    assert told["vocabulary"] == encoder.token_table.num_embeddings


def test_describe_reads_shards_and_leaves_out_heads(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import BertConfig, BertForMaskedLM

    config = BertConfig.from_pretrained(tiny_bert)
    BertForMaskedLM(config).save_pretrained(tmp_path, max_shard_size="40KB")
    assert len(backbone_files(tmp_path)) > 1
    plain, sharded = describe_folder(tiny_bert), describe_folder(tmp_path)
    assert {**sharded, "max_positions": None} == {**plain, "max_positions": None}
    backbone_files(tmp_path)[0].unlink()
    with pytest.raises(InputError, match="shards(.|\n)*00001-of"):
        describe_folder(tmp_path)


def test_describe_needs_no_torch(tiny_bert: Path) -> None:
    code = (
        "import sys; from harness.encoders.chain import describe_folder, weights_sha256;"
        "from harness.encoders.tokens import read_tokenizer, unknown_share;"
        "import harness.encoders.sources, harness.encoders.layers;"
        f"describe_folder({str(tiny_bert)!r}); unknown_share(read_tokenizer({str(tiny_bert)!r}), ['cat']);"
        "assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_pickled_weights_are_refused_with_advice(tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "copy"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match=r"no safetensors weights(.|\n)*pytorch_model.bin(.|\n)*save the model again"):
        open_encoder(folder)
    with pytest.raises(InputError, match="no model here"):
        describe_folder(tmp_path)


@pytest.mark.parametrize("content", [b"", b"abc", struct.pack("<Q", 1 << 60), struct.pack("<Q", 20) + b'{"a": 1'])
def test_a_damaged_header_is_named(content: bytes, tiny_bert: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bert, tmp_path / "copy"))
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(InputError, match="not a whole safetensors file"):
        describe_folder(folder)


def test_the_hash_follows_the_weights_of_the_whole_chain(projected: Path, tmp_path: Path) -> None:
    before = weights_sha256(projected)
    assert json.loads((projected / "harness.json").read_text()) == {"weights_sha256": before}
    encoder = open_encoder(projected)
    save_encoder(encoder, tmp_path / "same", {"note": "other settings"})
    assert weights_sha256(tmp_path / "same") == before
    with torch.no_grad():
        encoder.projection.bias[0] += 1
    save_encoder(encoder, tmp_path / "other")
    assert weights_sha256(tmp_path / "other") != before
