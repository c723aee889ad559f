"""What two servers ask of a model folder, as data, and an exported student held against it.

Neither server is started here. The rules are read from their sources, as of November 2026:

text-embeddings-inference (huggingface/text-embeddings-inference), where serde refuses a key that is missing without a
default, of another type, or with an unknown name in an enumeration:
- router/src/lib.rs: ``ModelConfig``, ``PoolConfig``, ``STConfig``, ``NewSTConfig``; tokenizer.json must be there;
- backends/src/lib.rs: ``ModuleConfig``, ``ModuleType`` (a modules.json that it can't parse loses the Dense in silence);
- backends/candle/src/models/dense.rs: ``DenseConfig``, ``DenseActivation``; linear.weight, linear.bias;
- backends/candle/src/lib.rs: model.safetensors or its index; the model types;
- backends/candle/src/models/bert.rs: ``BertConfig``, the names of the weights; it can't pool the last token;
- backends/candle/src/models/qwen3.rs: ``Qwen3Config``; no sliding window.

vLLM (vllm-project/vllm), which passes in silence over what it does not know:
- vllm/transformers_utils/config.py: ``get_pooling_config`` (of the keys that are true the last known one counts),
  ``get_sentence_transformer_tokenizer_config`` (both keys or none are read);
- vllm/model_executor/models/adapters.py: ``_load_st_projector`` (the first Dense, its weight under one of three names).
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from builders.tiny_models import write_tiny_bert, write_tiny_qwen3
from safetensors import safe_open

from harness.encoders.folder import open_encoder, save_encoder
from harness.encoders.surgery import add_projection
from harness.export.student import export_student

# ------------------------------------------------------------------------------------------------- the rules as data


@dataclass(frozen=True)
class Key:
    """A key of a JSON object: ``kind`` is what serde reads it into; ``one_of`` the values of an enumeration."""

    kind: str  # usize, f64, bool, str, strings (a list), map (str -> str), any
    required: bool = True  # without: a serde default
    null: bool = False  # an Option
    one_of: tuple[str, ...] = ()


def optional(kind: str) -> Key:
    return Key(kind, required=False, null=True)


TEI_MODEL = {
    "architectures": Key("strings"), "model_type": Key("str"), "max_position_embeddings": Key("usize"),
    "pad_token_id": Key("usize", required=False), "id2label": optional("map"), "label2id": optional("any"),
}  # fmt: skip
TEI_POOLING = {
    "pooling_mode_cls_token": Key("bool"), "pooling_mode_mean_tokens": Key("bool"),
    "pooling_mode_lasttoken": Key("bool", required=False),
    "pooling_mode_max_tokens": Key("bool"), "pooling_mode_mean_sqrt_len_tokens": Key("bool"),  # until TEI 1.2
}  # fmt: skip
TEI_SENTENCE_BERT = {"max_seq_length": Key("usize")}
TEI_PROMPTS = {"prompts": optional("map")}
TEI_MODULE = {
    "idx": Key("usize"), "name": Key("str"), "path": Key("str"),
    "type": Key("str", one_of=tuple(f"sentence_transformers.models.{kind}"
                                    for kind in ("Dense", "Normalize", "Pooling", "Transformer"))),
}  # fmt: skip
TEI_DENSE = {
    "in_features": Key("usize"), "out_features": Key("usize"), "bias": Key("bool"),
    "activation_function": Key("str", required=False, null=True, one_of=(
        "torch.nn.modules.activation.Tanh", "torch.nn.modules.linear.Identity")),
}  # fmt: skip
TEI_BACKBONE = {
    "bert": {
        **{name: Key("usize") for name in ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads",
                                           "intermediate_size", "max_position_embeddings", "type_vocab_size",
                                           "pad_token_id")},
        **{name: Key("f64") for name in ("hidden_dropout_prob", "initializer_range", "layer_norm_eps")},
        "hidden_act": Key("str", one_of=("gelu", "relu", "silu", "swiglu")),
        "position_embedding_type": Key("str", required=False, one_of=("absolute",)),
        "use_cache": Key("bool", required=False), "classifier_dropout": optional("f64"),
    },
    "qwen3": {
        **{name: Key("usize") for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers",
                                           "num_attention_heads", "num_key_value_heads", "max_position_embeddings",
                                           "eos_token_id")},
        "attention_bias": Key("bool"), "head_dim": optional("usize"), "rms_norm_eps": Key("f64"),
        "hidden_act": Key("str", one_of=("gelu", "relu", "silu", "swiglu")), "rope_theta": optional("f64"),
        "sliding_window": optional("usize"), "use_sliding_window": Key("bool"),
        "use_bidirectional_attention": optional("bool"), "num_labels": optional("usize"),
    },
}  # fmt: skip
_BERT_LAYER = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
               "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")  # fmt: skip
_QWEN3_LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "self_attn.q_norm",
                "self_attn.k_norm", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj", "input_layernorm",
                "post_attention_layernorm")  # fmt: skip
TEI_WEIGHTS = {  # (of the model, of layer N, prefixes that it also looks under)
    "bert": (("embeddings.word_embeddings.weight", "embeddings.token_type_embeddings.weight",
              "embeddings.position_embeddings.weight", "embeddings.LayerNorm.weight", "embeddings.LayerNorm.bias"),
             tuple(f"encoder.layer.{{}}.{name}.{part}" for name in _BERT_LAYER for part in ("weight", "bias")),
             ("", "bert.")),
    "qwen3": (("embed_tokens.weight", "norm.weight"), tuple(f"layers.{{}}.{name}.weight" for name in _QWEN3_LAYER),
              ("", "model.")),
}  # fmt: skip
VLLM_POOLINGS = {"CLS", "LAST", "MEAN"}
VLLM_DENSE_WEIGHTS = ("weight", "linear.weight", "dense.weight")


# ------------------------------------------------------------------------------------------------------- the readers


def reads(value: Any, kind: str) -> bool:
    """Whether serde reads a JSON value into the type; a whole number is a float, a float is no usize."""
    if kind == "usize":
        return type(value) is int and value >= 0
    if kind == "map":
        return isinstance(value, dict) and all(isinstance(item, str) for item in value.values())
    if kind == "strings":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    types: dict[str, tuple[type, ...]] = {"f64": (int, float), "bool": (bool,), "str": (str,), "any": (object,)}
    return isinstance(value, types[kind]) and (kind == "bool" or not isinstance(value, bool))


def violations(value: Mapping[str, Any], keys: Mapping[str, Key], where: str) -> list[str]:
    """What of a JSON object breaks the rules."""
    found = []
    for name, key in keys.items():
        if name not in value:
            found += [f"{where}: {name} is missing"] if key.required else []
        elif value[name] is None:
            found += [] if key.null else [f"{where}: {name} is null"]
        elif not reads(value[name], key.kind):
            found.append(f"{where}: {name} is no {key.kind}: {value[name]!r}")
        elif key.one_of and value[name] not in key.one_of:
            found.append(f"{where}: {name} has an unknown value: {value[name]!r}")
    return found


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def weights(path: Path) -> set[str]:
    with safe_open(path, framework="pt") as file:
        return set(file.keys())


def tei_refuses(folder: Path) -> list[str]:
    """Everything for which text-embeddings-inference would not start on the folder, or would read it wrongly."""
    found = [f"{name} is missing" for name in ("tokenizer.json", "modules.json", "model.safetensors")
             if not (folder / name).is_file()]  # fmt: skip
    config, pooling = read(folder / "config.json"), read(folder / "1_Pooling" / "config.json")
    found += violations(config, TEI_MODEL, "config.json")
    found += violations(pooling, TEI_POOLING, "1_Pooling/config.json")
    found += violations(read(folder / "sentence_bert_config.json"), TEI_SENTENCE_BERT, "sentence_bert_config.json")
    found += violations(read(folder / "config_sentence_transformers.json"), TEI_PROMPTS, "prompts")
    if any(architecture.endswith("Classification") for architecture in config.get("architectures", [])):
        found.append("it would be served as a classifier")
    family = config["model_type"]
    if family not in TEI_BACKBONE:
        return [*found, f"model_type {family} is not supported"]
    found += violations(config, TEI_BACKBONE[family], "config.json")
    if config.get("use_sliding_window"):
        found.append("a sliding window is not supported")
    if pooling.get("pooling_mode_lasttoken") and family == "bert":
        found.append("the last token of a BERT can't be pooled")
    if not any(pooling.get(f"pooling_mode_{mode}") for mode in ("cls_token", "mean_tokens", "lasttoken")):
        found.append("no pooling that it knows")
    modules = read(folder / "modules.json")
    for module in modules:
        found += violations(module, TEI_MODULE, "modules.json")
    for module in modules:
        if str(module.get("type", "")).endswith(".Dense"):
            found += _tei_dense(folder, module["path"])
    return found + _tei_weights(folder, family, config["num_hidden_layers"])


def _tei_dense(folder: Path, path: str) -> list[str]:
    config = read(folder / path / "config.json")
    found = violations(config, TEI_DENSE, f"{path}/config.json")
    wanted = {"linear.weight", *(["linear.bias"] if config.get("bias") else [])}
    missing = wanted - weights(folder / path / "model.safetensors")
    return found + [f"{path}: {name} is missing" for name in sorted(missing)]


def _tei_weights(folder: Path, family: str, layers: int) -> list[str]:
    if not (folder / "model.safetensors").is_file():
        return []
    of_model, of_layer, prefixes = TEI_WEIGHTS[family]
    wanted = {*of_model, *(name.format(layer) for layer in range(layers) for name in of_layer)}
    there = weights(folder / "model.safetensors")
    missing = [sorted(wanted - {name.removeprefix(prefix) for name in there if name.startswith(prefix)})
               for prefix in prefixes]  # fmt: skip
    return [] if not all(missing) else [f"weights: {name} is missing" for name in missing[0]]


def vllm_reads(folder: Path) -> dict[str, Any]:
    """What vLLM makes of the folder: pooling, normalise, length, and the projection's weight."""
    modules = read(folder / "modules.json")
    of_kind = {kind: [m for m in modules if m["type"] == f"sentence_transformers.models.{kind}"]
               for kind in ("Pooling", "Normalize", "Dense")}  # fmt: skip
    told: dict[str, Any] = {"normalize": bool(of_kind["Normalize"]), "pooling": None, "dense": None}
    for key, value in read(folder / of_kind["Pooling"][0]["path"] / "config.json").items():
        name = key.replace("pooling_mode_", "").split("_", 1)[0]
        name = ("last" if "lasttoken" in name else name).upper()
        if value is True and name in VLLM_POOLINGS:
            told["pooling"] = name
    lengths = read(folder / "sentence_bert_config.json")
    told["max_length"] = lengths["max_seq_length"] if {"max_seq_length", "do_lower_case"} <= set(lengths) else None
    if of_kind["Dense"]:
        path = folder / of_kind["Dense"][0]["path"]
        names = weights(path / "model.safetensors")
        config = read(path / "config.json")
        told["dense"] = next((name for name in VLLM_DENSE_WEIGHTS if name in names), None)
        told["dense_shape"] = (config.get("out_features", 768), config.get("in_features", 768))
    return told


# --------------------------------------------------------------------------------------------------------- the tests


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> dict[str, Path]:
    """Exported: a BERT (mean) and a Qwen3 (last token), plain and with a projection."""
    root = tmp_path_factory.mktemp("served")
    made = {"bert": write_tiny_bert(root / "bert", texts=texts), "qwen3": write_tiny_qwen3(root / "qwen3", texts=texts)}
    for family, path in list(made.items()):
        encoder = open_encoder(path)
        add_projection(encoder, torch.randn(16, 32), torch.randn(16))
        save_encoder(encoder, root / f"{family}-projected")
        made[f"{family}-projected"] = root / f"{family}-projected"
    for name, path in made.items():
        export_student(path, root / "export" / name)
    return {name: root / "export" / name for name in made}


@pytest.mark.parametrize("name", ["bert", "qwen3", "bert-projected", "qwen3-projected"])
def test_tei_s_rules_hold(folders: dict[str, Path], name: str) -> None:
    assert tei_refuses(folders[name]) == []


@pytest.mark.parametrize("name", ["bert", "qwen3", "bert-projected", "qwen3-projected"])
def test_vllm_reads_pooling_length_and_projection(folders: dict[str, Path], name: str) -> None:
    told, encoder = vllm_reads(folders[name]), open_encoder(folders[name])
    assert told["pooling"] == {"mean": "MEAN", "lasttoken": "LAST"}[encoder.pooling]
    assert told["normalize"] == encoder.normalize and told["max_length"] == encoder.max_length
    if encoder.projection is not None:
        assert told["dense"] == "linear.weight" and told["dense_shape"] == tuple(encoder.projection.weight.shape)


@pytest.mark.parametrize("name", ["bert", "qwen3"])
def test_only_safetensors_and_json(folders: dict[str, Path], name: str) -> None:
    suffixes = {path.suffix for path in folders[name].rglob("*") if path.is_file()}
    assert suffixes == {".json", ".safetensors"}


def test_what_sentence_transformers_saves_breaks_the_rules(folders: dict[str, Path], tmp_path: Path) -> None:
    """The reader must be able to refuse: this is why folders are written in the older form."""
    library: Any = pytest.importorskip("sentence_transformers")
    library.SentenceTransformer(str(folders["bert-projected"]), device="cpu").save(str(tmp_path / "saved"))
    found = "\n".join(tei_refuses(tmp_path / "saved"))
    assert "pooling_mode_cls_token is missing" in found and "modules.json: type has an unknown value" in found


@pytest.mark.parametrize(
    ("file", "change", "told"),
    [
        ("config.json", {"pad_token_id": None}, "pad_token_id is null"),
        ("config.json", {"architectures": ["BertForSequenceClassification"]}, "classifier"),
        ("config.json", {"hidden_act": "gelu_new"}, "hidden_act has an unknown value"),
        ("config.json", {"num_hidden_layers": 9}, "encoder.layer.8"),
        ("config.json", {"model_type": "deberta"}, "not supported"),
        ("1_Pooling/config.json", {"pooling_mode_mean_tokens": "yes"}, "is no bool"),
        ("sentence_bert_config.json", {"max_seq_length": None}, "max_seq_length is null"),
        ("config_sentence_transformers.json", {"prompts": {"query": None}}, "prompts is no map"),
        ("2_Dense/config.json", {"activation_function": "torch.nn.Identity"}, "activation_function has an unknown"),
        ("2_Dense/config.json", {"in_features": 32.0}, "in_features is no usize"),
    ],
)
def test_the_rules_can_be_broken(
    folders: dict[str, Path], tmp_path: Path, file: str, change: dict[str, Any], told: str
) -> None:
    folder = Path(shutil.copytree(folders["bert-projected"], tmp_path / "copy"))
    (folder / file).write_text(json.dumps({**read(folder / file), **change}))
    assert told in "\n".join(tei_refuses(folder))
