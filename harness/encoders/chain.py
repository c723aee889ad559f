"""A model folder read without torch: its chain of modules, its prompts, its size, the hash of its weights.

Reads what sentence-transformers 2 to 6 write: legacy type names and keys, and those since 5.4.
"""

from __future__ import annotations

import json
import math
import re
import struct
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast, get_args

from harness.encoders.shapes import shapes_of_config
from harness.recipe import Pooling
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import file_sha256, fingerprint, read_json

POOLINGS: tuple[str, ...] = get_args(Pooling)
LEGACY_POOLING = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
IDENTITY, TANH = "torch.nn.modules.linear.Identity", "torch.nn.modules.activation.Tanh"
_ACTIVATIONS = {IDENTITY: False, "torch.nn.Identity": False, TANH: True, "torch.nn.Tanh": True}
_CHAIN = "Transformer, Pooling, then any Dense, then at most one Normalize"
_AGAIN = "get the model again, or save it again with sentence-transformers"
_TOKEN_TABLES = ("word_embeddings.weight", "embed_tokens.weight", "tok_embeddings.weight")
# Heads of pretraining tasks, and BERT's pooler: in many checkpoints, in no encoder of ours.
_LAYER = re.compile(r"(?:^|\.)(?:layers?|h|blocks?)\.(\d+)\.")
_COUNT_FROM_PADDING = {"roberta", "xlm-roberta", "camembert", "mpnet", "longformer"}  # positions begin behind padding
# Architectures, by the config's ``model_type``, whose batches without padding are tested to give what padded ones do.
WITHOUT_PADDING = frozenset(
    {"bert", "roberta", "xlm-roberta", "camembert", "modernbert", "qwen2", "qwen3", "llama", "mistral"}
)  # fmt: skip
HEADS = {"pooler", "lm_head", "cls", "classifier", "score", "vocab_transform", "vocab_layer_norm", "vocab_projector"}


@dataclass(frozen=True, slots=True)
class DenseModule:
    """A Dense module's folder and shape; ``tanh`` tells the two allowed activations apart."""

    folder: Path
    in_features: int
    out_features: int
    bias: bool
    tanh: bool


@dataclass(frozen=True, slots=True)
class Chain:
    """What a model folder says about the way from a text to a vector; ``pooling`` None: it does not say."""

    pooling: Pooling | None
    dense: tuple[DenseModule, ...] = ()
    normalize: bool = True
    prompts: dict[str, str] = field(default_factory=dict)
    max_length: int | None = None
    lower_case: bool = False


def _read_map(path: Path) -> dict[str, Any]:
    value = read_json(path, next=_AGAIN)
    if not isinstance(value, dict):
        raise InputError(Problem("not a JSON object", where=str(path), got=type(value).__name__, next=_AGAIN))
    return value


def _optional_json(path: Path) -> dict[str, Any]:
    return _read_map(path) if path.is_file() else {}


def _read_modules(path: Path) -> list[dict[str, Any]]:
    modules = read_json(path, next=_AGAIN)
    if not isinstance(modules, list) or not all(isinstance(module, dict) and "type" in module for module in modules):
        raise InputError(Problem("not a list of modules", where=str(path), allowed=_CHAIN, next=_AGAIN))
    return modules


def read_chain(folder: Path) -> Chain:
    """Read the module chain of a model folder.

    A folder without ``modules.json`` is a plain transformers model: its pooling is unknown, its vectors are normalised.

    Raises:
        InputError: with every module, order or setting that is not supported.
    """
    prompts = _read_prompts(_optional_json(folder / "config_sentence_transformers.json"))
    if not (folder / "modules.json").is_file():
        return Chain(pooling=None, prompts=prompts)
    problems: list[Problem] = []
    pooling, dense, kinds, max_length, lower_case = None, [], "", None, False
    for module in _read_modules(folder / "modules.json"):
        kind = str(module["type"]).rpartition(".")[2]
        place = folder / module.get("path", "")
        where = str(place) if place.resolve().is_relative_to(folder.resolve()) else ""
        config = _optional_json(place / "config.json") if kind != "Transformer" and where else {}
        kinds += kind[0]
        if not where:
            problems.append(Problem("a module outside of the model's folder", where=str(folder), got=module["path"]))
        elif kind == "Transformer":
            settings = _optional_json(place / "sentence_bert_config.json")
            max_length, lower_case = settings.get("max_seq_length"), bool(settings.get("do_lower_case"))
            if place.resolve() != folder.resolve():
                problems.append(Problem("the Transformer must lie in the folder's root", where=where))
        elif kind == "Pooling":
            pooling = _read_pooling(config, where, problems)
        elif kind == "Dense":
            dense.append(_read_dense(config, place, problems))
        elif kind != "Normalize":
            problems.append(Problem("a module that is not supported", where=str(folder / "modules.json"),
                                    got=str(module["type"]), allowed=_CHAIN))
    if not problems and not re.fullmatch("TPD*N?", kinds):
        problems.append(Problem("modules in an order that is not supported", where=str(folder / "modules.json"),
                                got=" ".join(kinds), allowed=_CHAIN))
    if problems:
        raise InputError(problems)
    return Chain(pooling, tuple(d for d in dense if d), "N" in kinds, prompts, max_length, lower_case)


def _read_prompts(config: dict[str, Any]) -> dict[str, str]:
    """As ``encode_query`` and ``encode_document`` choose them, the default prompt where a side has none."""
    saved = {name: text for name, text in (config.get("prompts") or {}).items() if text is not None}
    default = saved.get(config.get("default_prompt_name") or "", "")
    document = next((saved[name] for name in ("document", "passage", "corpus") if name in saved), default)
    return {"query": saved.get("query", default), "document": document}


def _read_pooling(config: dict[str, Any], where: str, problems: list[Problem]) -> Pooling | None:
    modes = config.get("pooling_mode")
    if modes is None:
        modes = [mode for key, mode in LEGACY_POOLING.items() if config.get(key)] or ["mean"]
    modes = [modes] if isinstance(modes, str) else list(modes)
    if len(modes) != 1 or modes[0] not in POOLINGS:
        problems.append(Problem("a pooling that is not supported", where=where, got=" + ".join(modes),
                                allowed=", ".join(POOLINGS)))
        return None
    if config.get("include_prompt") is False:
        problems.append(Problem("a pooling that leaves out the prompt's tokens is not supported", where=where,
                                got="include_prompt: false", allowed="include_prompt: true"))
    return cast(Pooling, modes[0])


def _read_dense(config: dict[str, Any], place: Path, problems: list[Problem]) -> DenseModule | None:
    activation = config.get("activation_function", TANH)
    odd = [
        f"{key}: {config[key]}"
        for key, plain in [("module_input_name", "sentence_embedding"), ("module_output_name", "sentence_embedding"),
                           ("use_residual", False)]
        if config.get(key, plain) not in (plain, None)
    ]  # fmt: skip
    if activation not in _ACTIVATIONS:
        problems.append(Problem("a Dense activation that is not supported", where=str(place), got=str(activation),
                                allowed=f"{IDENTITY} or {TANH}"))
        return None
    if odd:
        problems.append(Problem("a Dense setting that is not supported", where=str(place), got=", ".join(odd)))
    if not all(isinstance(config.get(key), int) for key in ("in_features", "out_features")):
        problems.append(Problem("a Dense module without its sizes", where=str(place / "config.json"),
                                allowed="in_features and out_features", next=_AGAIN))
        return None
    if not (place / "model.safetensors").is_file():
        problems.append(Problem("a Dense module without safetensors weights", where=str(place),
                                next="save the model again with a recent sentence-transformers"))
    return DenseModule(place, config["in_features"], config["out_features"], bool(config.get("bias", True)),
                       _ACTIVATIONS[activation])


# ----------------------------------------------------------------------------------------------------- weights


def backbone_files(folder: Path) -> list[Path]:
    """The safetensors files of the backbone: one, or the shards that the index names.

    Raises:
        InputError: there are none, or only weights in a format that can run code when read.
    """
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        named = _read_map(index).get("weight_map")
        if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
            raise InputError(Problem("the index of the weights names no files", where=str(index), next=_AGAIN))
        files = [folder / name for name in sorted(set(named.values()))]
        missing = [file.name for file in files if not file.is_file()]
        if not missing:
            return files
        raise InputError(Problem("shards of the weights are missing", where=str(folder), got=", ".join(missing)))
    if not (folder / "config.json").is_file():
        raise InputError(Problem("no model here", where=str(folder), allowed="a folder with config.json, safetensors"))
    pickled = sorted(path.name for path in folder.glob("*.bin"))
    why = "; reading pickled weights can run code that somebody put there" if pickled else ""
    raise InputError(
        Problem("no safetensors weights", where=str(folder), got=(", ".join(pickled) or "no weights at all") + why,
                allowed="model.safetensors, or shards with their index",
                next="save the model again with a recent transformers, which writes safetensors" if pickled else _AGAIN)
    )


def verify_sha256(wanted: str | None, files: list[Path]) -> None:
    """Compare the hash of a model's one weights file with the recipe's; None compares nothing.

    Raises:
        InputError: it differs (both are named), or the model has several files.
    """
    if wanted is None:
        return
    if len(files) != 1:
        raise InputError(Problem("sha256 is the hash of one weights file, this model has several",
                                 where=str(files[0].parent), got=f"{len(files)} files", next="remove sha256"))
    got = file_sha256(files[0])
    if got != wanted.lower():
        raise InputError(Problem("the weights are not those that the recipe names", where=str(files[0]),
                                 got=f"sha256 {got}", allowed=f"sha256 {wanted.lower()}",
                                 next="get the right file, or correct sha256"))


def weights_sha256(folder: str | Path) -> str:
    """One sha256 over the safetensors files of the chain (backbone, Dense): equal files, equal hash."""
    folder = Path(folder)
    dense = [module.folder / "model.safetensors" for module in read_chain(folder).dense]
    return fingerprint([[file.name, file_sha256(file)] for file in backbone_files(folder) + dense])


def safetensors_shapes(path: Path) -> dict[str, tuple[str, list[int]]]:
    """Name -> (type, shape) of the tensors in a safetensors file, from its header alone."""
    with open(path, "rb") as stream:
        try:
            (size,) = struct.unpack("<Q", stream.read(8))
            if size > 100_000_000:
                raise ValueError(f"a header of {size} bytes")
            header = json.loads(stream.read(size))
            if not isinstance(header, dict):
                raise ValueError("its header is no map of tensors")
            header.pop("__metadata__", None)
            found = {name: (str(tensor["dtype"]), list(tensor["shape"])) for name, tensor in header.items()}
            end = 8 + size + max((int(tensor["data_offsets"][1]) for tensor in header.values()), default=0)
            if path.stat().st_size < end:
                raise ValueError(f"{path.stat().st_size:,} bytes, its header speaks of {end:,}")
            return found
        except (struct.error, ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            got = "no whole header" if isinstance(error, struct.error) else str(error)
            raise InputError(
                Problem("not a whole safetensors file", where=str(path), got=got, next="get the file again")
            ) from None


def backbone_shapes(folder: Path, *, by_config: bool = False) -> dict[str, tuple[str, list[int]]]:
    """Name -> (type, shape) of the backbone's weights, from their files' headers; ``by_config``: where there are none,
    by the config alone.

    Raises:
        InputError: there are no weights, or the config does not tell their shapes.
    """
    try:
        return {name: tensor for file in backbone_files(folder) for name, tensor in safetensors_shapes(file).items()}
    except InputError:
        if not by_config or not (folder / "config.json").is_file():
            raise
    config = _read_map(folder / "config.json")
    kind = "BF16" if "bfloat16" in (config.get("dtype"), config.get("torch_dtype")) else "F32"
    return {name: (kind, shape) for name, shape in shapes_of_config(config, str(folder)).items()}


def describe_folder(folder: str | Path, *, by_config: bool = False) -> dict[str, Any]:
    """Say how large a model is without loading it; ``by_config``: also where its weights are not there yet.

    Returns:
        ``architecture``, ``parameters``, ``parameters_without_embeddings`` (without the token table), ``layers``,
        ``stored_layers`` (of which there are weights; 0 where their names don't tell), ``layer_parameters`` (of one),
        ``hidden_size``, ``heads``, ``key_value_heads``, ``head_size``, ``feed_forward`` (units of a layer's network;
        0 where the config does not tell), ``gated`` (whether it is a gated one), ``head_norms`` (whether queries and
        keys are normalised), ``bf16`` (whether weights are stored so), ``dimension`` (of its vectors), ``vocabulary``
        (rows of the token table), ``max_positions`` (tokens of the longest text; None: the config sets no limit).

    Raises:
        InputError: no config, no safetensors, or a chain that is not supported.
    """
    folder = Path(folder)
    dense = read_chain(folder).dense
    tensors = backbone_shapes(folder, by_config=by_config)
    config = _read_map(folder / "config.json")
    counts = {
        name: math.prod(shape)
        for name, (dtype, shape) in tensors.items()
        if "F" in dtype and not HEADS & set(name.split(".")[:2])
    }
    tables = {name: count for name, count in counts.items() if name.endswith(_TOKEN_TABLES)}
    projection = 0
    if dense:  # identity Dense modules in a row are read as one
        projection = dense[0].in_features * dense[-1].out_features + dense[-1].out_features * any(d.bias for d in dense)
    total = sum(counts.values()) + projection
    hidden_size = _first_of(config, "hidden_size", "dim", "d_model", "n_embd")
    positions = config.get("max_position_embeddings")
    if positions is not None and config.get("model_type") in _COUNT_FROM_PADDING:
        positions -= config.get("pad_token_id", 1) + 1
    stored = {name: int(match[1]) for name in counts if (match := _LAYER.search(name))}
    layers = max(stored.values(), default=-1) + 1
    heads = _first_of(config, "num_attention_heads", "n_heads", "n_head") or 1
    return {
        "architecture": config.get("model_type", ""),
        "parameters": total,
        "parameters_without_embeddings": total - sum(tables.values()),
        "layers": _first_of(config, "num_hidden_layers", "n_layers", "n_layer", "num_layers"),
        "stored_layers": layers,
        "layer_parameters": sum(counts[name] for name in stored) // max(layers, 1),
        "hidden_size": hidden_size,
        "heads": heads,
        "key_value_heads": config.get("num_key_value_heads") or heads,
        "head_size": config.get("head_dim") or hidden_size // heads,
        "feed_forward": _first_of(config, "intermediate_size", "hidden_dim"),
        "head_norms": any(".q_norm." in name for name in counts),
        "gated": any("gate_proj" in name or name.endswith("mlp.Wi.weight") for name in counts),
        "bf16": {tensors[name][0] for name in counts} == {"BF16"},
        "dimension": dense[-1].out_features if dense else hidden_size,
        "vocabulary": next((tensors[name][1][0] for name in tables), config.get("vocab_size", 0)),
        "max_positions": positions,
    }


def _first_of(config: dict[str, Any], *keys: str) -> int:
    return next((config[key] for key in keys if key in config), 0)
