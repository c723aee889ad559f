"""Encoders at rest: a sentence-transformers folder in, the same out, in the legacy form that every reader knows."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn

from harness.encoders.chain import (
    IDENTITY,
    LEGACY_POOLING,
    TANH,
    Chain,
    backbone_files,
    describe_folder,
    read_chain,
    verify_sha256,
    weights_sha256,
)
from harness.encoders.encoder import Encoder
from harness.encoders.sources import resolve_model
from harness.encoders.surgery import compose, linear, truncate
from harness.encoders.tokens import lower_first
from harness.recipe import EncoderSettings, Pooling
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import atomic_folder, read_json, write_json

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

__all__ = ["describe_folder", "load_encoder", "open_encoder", "save_encoder", "weights_sha256"]

_TOKENIZER_FILES = (
    "tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model"
)  # fmt: skip


def load_encoder(
    settings: EncoderSettings, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa"
) -> Encoder:
    """Load the encoder that a recipe names, on the CPU, in evaluation mode.

    Args:
        settings: what is ``None`` is taken from the folder.
        dtype: of the backbone; a projection is always float32.
        attention: ``eager`` (fastest on a CPU for short texts), ``sdpa`` (``eager`` where a model has none) or
            ``flash_attention_2``.

    Raises:
        InputError: the model is not found, its weights have another hash, a module, pooling or length is not
            supported, weights or tokenizer are missing or don't fit.
    """
    if settings.model is None:
        raise InputError(Problem("no model is named", where="model", next="name a folder, package:NAME or a hub id"))
    folder = resolve_model(settings.model, settings.revision)
    chain = read_chain(folder)
    files = backbone_files(folder)
    verify_sha256(settings.sha256, files)
    pooling: Pooling | None = settings.pooling or chain.pooling
    if pooling is None:
        raise InputError(Problem("the folder does not say how tokens are pooled (it has no modules.json)",
                                 where=str(folder), allowed="mean, cls, lasttoken", next="set pooling in the recipe"))
    backbone = _load_backbone(folder, dtype, attention, settings.trust_remote_code)
    tokenizer = _load_tokenizer(folder, chain, settings.trust_remote_code)
    table = cast(nn.Embedding, backbone.get_input_embeddings()).num_embeddings
    highest = max(tokenizer.get_vocab().values(), default=0)
    if highest >= table:
        raise InputError(Problem("the tokenizer does not fit the model", where=str(folder), got=f"token id {highest}",
                                 allowed=f"ids below {table}, the rows of the token table"))
    projection, tanh = _load_projection(chain)
    encoder = Encoder(
        backbone, tokenizer, pooling=pooling, projection=projection, tanh=tanh, normalize=chain.normalize,
        prompts={**chain.prompts, **settings.prompts.model_dump(exclude_none=True)},
        max_length=_max_length(settings, chain, backbone, tokenizer),
    )  # fmt: skip
    encoder.lower_case = chain.lower_case
    if settings.dimension is not None:
        truncate(encoder, settings.dimension)
    return encoder.eval()


@dataclass(frozen=True)
class Reader:
    """How an encoder reads texts: all of it but the weights."""

    tokenizer: PreTrainedTokenizerBase
    prompts: dict[str, str]
    max_length: int


def load_reader(settings: EncoderSettings) -> Reader:
    """What ``load_encoder`` would give an encoder to read with; no weights are loaded."""
    from transformers import AutoConfig, AutoModel

    folder = resolve_model(settings.model or "", settings.revision)
    chain, trust = read_chain(folder), settings.trust_remote_code
    tokenizer = _load_tokenizer(folder, chain, trust)
    with quiet(), torch.device("meta"):  # the kind of positions decides over the length
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust, local_files_only=True)
        backbone = AutoModel.from_config(config, trust_remote_code=trust)
    prompts = {"query": "", "document": "", **chain.prompts, **settings.prompts.model_dump(exclude_none=True)}
    return Reader(tokenizer, prompts, _max_length(settings, chain, backbone, tokenizer))


def open_encoder(folder: str | Path, *, dtype: torch.dtype = torch.float32, attention: str = "sdpa") -> Encoder:
    """Open a folder that we or sentence-transformers saved, as it says. Raises what ``load_encoder`` raises."""
    path = Path(folder)
    if not path.is_dir():
        raise InputError(Problem("no such model folder", where=str(path)))
    return load_encoder(EncoderSettings(model=str(path)), dtype=dtype, attention=attention)


def save_encoder(
    encoder: Encoder, folder: str | Path, extra: dict[str, Any] | Callable[[str], dict[str, Any]] | None = None
) -> None:
    """Save an encoder so that sentence-transformers 3 to 6 and text-embeddings-inference open it with equal vectors.

    ``harness.json`` beside it holds ``weights_sha256`` and ``extra`` (or what ``extra`` makes of that hash). An
    existing folder is replaced in one move. sentence-transformers opens it without a warning: it is told that there is
    no pooler (``model_args`` in sentence_bert_config.json).
    """
    chain = [("Transformer", ""), ("Pooling", "1_Pooling")]
    if encoder.projection is not None:
        chain.append(("Dense", "2_Dense"))
    if encoder.normalize:
        chain.append(("Normalize", f"{len(chain)}_Normalize"))
    hidden_size = int(encoder.backbone.config.hidden_size)
    size = sum(parameter.numel() * parameter.element_size() for parameter in encoder.parameters())
    with atomic_folder(folder, size=size) as new:
        with quiet():
            encoder.backbone.save_pretrained(new)
            backend = getattr(encoder.tokenizer, "backend_tokenizer", None)
            if backend is not None:  # the last call's settings don't belong into the file
                backend.no_truncation()
                backend.no_padding()
            encoder.tokenizer.save_pretrained(new)
        _tidy_configs(new)
        write_json(new / "modules.json", [
            {"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"}
            for index, (kind, path) in enumerate(chain)
        ])  # fmt: skip
        write_json(new / "sentence_bert_config.json", {
            "max_seq_length": encoder.max_length, "do_lower_case": encoder.lower_case, **_without_pooler(encoder)
        })  # fmt: skip
        write_json(new / "config_sentence_transformers.json", {
            "prompts": encoder.prompts, "default_prompt_name": None,
            "similarity_fn_name": "cosine" if encoder.normalize else "dot",
        })  # fmt: skip
        write_json(new / "1_Pooling" / "config.json", {
            "word_embedding_dimension": hidden_size,
            **{key: mode == encoder.pooling for key, mode in LEGACY_POOLING.items()},
        })  # fmt: skip
        if encoder.projection is not None:
            _save_dense(encoder.projection, encoder.tanh, new / "2_Dense")
        sha256 = weights_sha256(new)
        more = extra(sha256) if callable(extra) else extra or {}
        write_json(new / "harness.json", {"weights_sha256": sha256, **more})


def _without_pooler(encoder: Encoder) -> dict[str, Any]:
    """Tells sentence-transformers not to make the pooler that BERT's kin have and we dropped.

    Else transformers reports, loudly, weights that are missing and random. The key is as old as the layout; servers
    pass over it.
    """
    takes = inspect.signature(type(encoder.backbone).__init__).parameters
    return {"model_args": {"add_pooling_layer": False}} if "add_pooling_layer" in takes else {}


def _tidy_configs(folder: Path) -> None:
    """Name, beside transformers 5's names, what its version 4 and text-embeddings-inference look for, and drop what
    tells how this process loaded the tokenizer."""
    config = read_json(folder / "config.json")
    rope = config.get("rope_parameters") or {}
    older = {"torch_dtype": config.get("dtype"), "rope_theta": rope.get("rope_theta")}
    write_json(folder / "config.json", {**config, **{key: value for key, value in older.items() if value is not None}})
    tokenizer = read_json(folder / "tokenizer_config.json")
    for key in ("is_local", "local_files_only", "name_or_path"):
        tokenizer.pop(key, None)
    if tokenizer.get("tokenizer_class") == "TokenizersBackend":
        tokenizer["tokenizer_class"] = "PreTrainedTokenizerFast"
    write_json(folder / "tokenizer_config.json", tokenizer)


def _save_dense(projection: nn.Linear, tanh: bool, folder: Path) -> None:
    from safetensors.torch import save_file

    write_json(folder / "config.json", {
        "in_features": projection.in_features, "out_features": projection.out_features,
        "bias": projection.bias is not None, "activation_function": TANH if tanh else IDENTITY,
    })  # fmt: skip
    weights = {f"linear.{name}": tensor.detach().cpu().contiguous() for name, tensor in projection.state_dict().items()}
    save_file(weights, folder / "model.safetensors")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' bars and load reports for a while: what matters in them is raised as an error."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()


def _load_backbone(folder: Path, dtype: torch.dtype, attention: str, trust_remote_code: bool) -> PreTrainedModel:
    from transformers import AutoConfig, AutoModel

    if (folder / "adapter_config.json").is_file():
        raise InputError(Problem("an adapter, not a whole model", where=str(folder), next="merge it into its base"))
    try:
        with quiet():
            config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code, local_files_only=True)
            backbone, report = AutoModel.from_pretrained(
                folder, config=config, dtype=dtype, use_safetensors=True,
                attn_implementation=None if attention in ("auto", "sdpa") else attention,  # None: sdpa where it exists
                trust_remote_code=trust_remote_code, local_files_only=True, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # transformers raises many kinds for a folder that it can't load
        raise InputError(Problem("the model can't be loaded", where=str(folder), got=_first_line(error))) from error
    if config.is_encoder_decoder:
        raise InputError(Problem("a model with encoder and decoder is not supported", where=str(folder),
                                 got=config.model_type))
    missing = sorted(name for name in report["missing_keys"] if not name.startswith("pooler."))
    if missing:
        raise InputError(Problem("weights are missing: they would be random", where=str(folder),
                                 got=f"{len(missing)} missing, such as {missing[0]}", next="get the whole model"))
    return backbone


def _load_tokenizer(folder: Path, chain: Chain, trust_remote_code: bool) -> PreTrainedTokenizerBase:
    from transformers import AutoTokenizer

    if not any((folder / name).is_file() for name in _TOKENIZER_FILES):
        raise InputError(Problem("the model folder has no tokenizer", where=str(folder), allowed="tokenizer.json"))
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(
                folder, trust_remote_code=trust_remote_code, local_files_only=True
            )
    except Exception as error:  # as above
        raise InputError(Problem("the tokenizer can't be loaded", where=str(folder), got=_first_line(error))) from error
    if tokenizer.pad_token_id is None:
        if tokenizer.eos_token is None:
            raise InputError(Problem("the tokenizer has no padding token", where=str(folder), next="add a pad_token"))
        tokenizer.pad_token = tokenizer.eos_token  # masked out: any token serves
    if chain.lower_case:
        lower_first(tokenizer.backend_tokenizer)
    return tokenizer


def _load_projection(chain: Chain) -> tuple[nn.Linear | None, bool]:
    """Read the Dense modules; several without activation become one linear map."""
    from safetensors.torch import load_file

    projection: nn.Linear | None = None
    for number, module in enumerate(chain.dense):
        tensors = load_file(module.folder / "model.safetensors")
        weight, bias = tensors.get("linear.weight"), tensors.get("linear.bias")
        shape = (module.out_features, module.in_features)
        if weight is None or tuple(weight.shape) != shape or (bias is not None) != module.bias:
            raise InputError(Problem("the Dense weights don't fit their config", where=str(module.folder),
                                     got=", ".join(f"{name} {tuple(t.shape)}" for name, t in sorted(tensors.items())),
                                     allowed=f"linear.weight {shape}" + (" and linear.bias" if module.bias else "")))
        if module.tanh and number < len(chain.dense) - 1:
            raise InputError(Problem("only the last Dense module may have a tanh", where=str(module.folder)))
        if projection is not None and projection.out_features != module.in_features:
            raise InputError(Problem("a Dense module that does not fit the one before", where=str(module.folder),
                                     got=f"in_features {module.in_features}", allowed=str(projection.out_features)))
        projection = linear(*(compose(projection, weight, bias) if projection is not None else (weight, bias)))
    return projection, bool(chain.dense) and chain.dense[-1].tanh


def _max_length(
    settings: EncoderSettings, chain: Chain, backbone: PreTrainedModel, tokenizer: PreTrainedTokenizerBase
) -> int:
    """The recipe's, else the chain's, else the tokenizer's within the model's positions."""
    limit = getattr(backbone.config, "max_position_embeddings", None)
    positions: Any = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    if limit is not None and getattr(positions, "padding_idx", None) is not None:
        limit -= positions.padding_idx + 1  # RoBERTa's kin count positions from there
    wanted = settings.max_length or chain.max_length
    if wanted is None:
        return min(tokenizer.model_max_length, limit or 512)
    if limit is not None and wanted > limit:
        raise InputError(Problem("longer than the model's positions", where="max_length", got=str(wanted),
                                 allowed=f"1 to {limit}", next=f"set max_length to at most {limit}"))
    return wanted


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
