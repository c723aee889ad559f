"""ONNX files of an encoder, in its folder: whole graphs, from token ids to the finished vector."""

from __future__ import annotations

import contextlib
import copy
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from harness.encoders.chain import weights_sha256
from harness.engines.deployed import (
    MODEL_FILES,
    ONNX,
    PROBE,
    deciding_files,
    read_onnx_manifest,
    refuse_unusable,
    seal,
)
from harness.engines.tokeniser import Tokeniser
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import atomic_folder, file_sha256, read_json, remove_folder, write_json

if TYPE_CHECKING:
    from harness.encoders.encoder import Encoder

__all__ = ["export_onnx", "remove_onnx"]

_CALIBRATE = 256  # texts at most; more change no range that matters
_PACKAGES = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript")
_HARD = ("", "a", "ein lachendes Gesicht", "שלום עולם", "مرحبا", "😀👩‍👩‍👧‍👦", "搜索 查询", "Straße ÑANDÚ", "x" * 3000)


def export_onnx(
    encoder: Encoder, folder: str | Path, precisions: Sequence[str], *, calibration: Sequence[str] = ()
) -> dict[str, Path]:
    """Write ``folder/onnx``: the encoder's graph in each precision, and a manifest by which it is refused when edited.

    Args:
        encoder: what ``folder`` holds. It stays as it is.
        folder: a sentence-transformers folder with weights and tokenizer; its ``onnx/`` is replaced as a whole.
        precisions: of ``fp32``, ``fp16``, ``int8`` (ranges taken from each batch) and ``int8-static``.
        calibration: query texts without prompt, which ``int8-static`` needs.

    Returns:
        precision -> its file.

    Raises:
        InputError: an unknown precision, no calibration texts, the extra ``onnx`` is missing, no tokenizer, an adapter,
            or a tokenizer.json that makes other tokens than the encoder's tokenizer.
        RunError: the model can't be exported.
    """
    folder = Path(folder)
    _refuse(folder, precisions, calibration)
    from harness.export.onnx.graph import OPSET, write_graph
    from harness.export.onnx.precision import make

    tokeniser = Tokeniser.of_folder(folder)
    _require_same_tokens(encoder, tokeniser, [*_HARD, *calibration[:_CALIBRATE]])
    size = encoder.parameter_count * sum({"fp32": 4, "fp16": 2}.get(precision, 1) for precision in precisions)
    with atomic_folder(folder / ONNX, size=size) as new, tempfile.TemporaryDirectory(dir=new) as scratch:
        source = (new if "fp32" in precisions else Path(scratch)) / MODEL_FILES["fp32"]
        with _plain(encoder) as plain:
            form = write_graph(plain, source)
            vector_ND = plain.encode(PROBE, side="query")
        feeds = [_feed(tokeniser, text) for text in calibration[:_CALIBRATE]] if "int8-static" in precisions else []
        for precision in precisions:
            if precision != "fp32":
                make(precision, source, new / MODEL_FILES[precision], feeds, normalised=encoder.normalize)
        files = {
            precision: {path.name: file_sha256(path) for path in sorted(new.glob(f"{MODEL_FILES[precision]}*"))}
            for precision in MODEL_FILES if precision in precisions
        }  # fmt: skip
        told = read_json(folder / "harness.json") if (folder / "harness.json").is_file() else {}
        write_json(new / "harness.json", seal({
            "schema": 1, "files": files, "dimension": encoder.dimension, "space": told.get("space"),
            "weights_sha256": weights_sha256(folder), "beside": deciding_files(folder), "opset": OPSET, "form": form,
            "calibration_texts": len(feeds),
            "probe": {"texts": list(PROBE), "vectors": [[round(float(x), 6) for x in row] for row in vector_ND]},
            "versions": {name: metadata.version(name) for name in _PACKAGES},
        }))  # fmt: skip
    return {precision: folder / ONNX / MODEL_FILES[precision] for precision in files}


def remove_onnx(folder: str | Path, precisions: Iterable[str]) -> None:
    """Take precisions away again (they failed the parity gate); without any left, the whole ``onnx/`` goes."""
    folder, gone = Path(folder), set(precisions)
    told = read_onnx_manifest(folder)
    left = {precision: files for precision, files in told["files"].items() if precision not in gone}
    if not left:
        remove_folder(folder / ONNX)
        return
    told.pop("sealed")
    write_json(folder / ONNX / "harness.json", seal({**told, "files": left}))
    for precision in gone & told["files"].keys():
        for name in told["files"][precision]:
            (folder / ONNX / name).unlink()


def _refuse(folder: Path, precisions: Sequence[str], calibration: Sequence[str]) -> None:
    problems = []
    unknown = sorted(set(precisions) - MODEL_FILES.keys())
    if unknown or not precisions:
        problems.append(Problem("no such precision", where="export.onnx", got=", ".join(unknown) or "none",
                                allowed=", ".join(MODEL_FILES), next="correct the recipe"))  # fmt: skip
    if "int8-static" in precisions and not calibration:
        problems.append(Problem("int8-static needs texts to measure ranges on", where="export.onnx", got="no texts",
                                allowed="queries of the kind that will be asked",
                                next="give some, or take int8-static out"))  # fmt: skip
    missing = [name for name in ("onnx", "onnxruntime", "onnxscript") if not _installed(name)]
    if missing:
        problems.append(Problem("packages are not installed", where="export.onnx", got=", ".join(missing),
                                allowed="all three", next="pip install 'harness-retrieval[onnx]'"))  # fmt: skip
    if problems:
        raise InputError(problems)
    refuse_unusable(folder)


def _installed(name: str) -> bool:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return bool(metadata.version(name))
    return False


def _require_same_tokens(encoder: Encoder, tokeniser: Tokeniser, texts: Sequence[str]) -> None:
    """What is deployed reads ``tokenizer.json``; some tokenizers of transformers do more than that file says."""
    expected = [tokens or [encoder.tokenizer.pad_token_id] for tokens in encoder.collator("query").tokens(texts)]
    for text, ours, theirs in zip(texts, tokeniser.token_lists(texts), expected, strict=True):
        if ours != theirs:
            raise InputError(
                Problem("the folder's tokenizer.json does not make the tokens that the encoder reads",
                        where="tokenizer.json", got=f"{ours[:8]} for {text[:40]!r}", allowed=f"{theirs[:8]}",
                        next="save the tokenizer again with transformers")
            )  # fmt: skip


def _feed(tokeniser: Tokeniser, text: str) -> dict[str, np.ndarray]:
    tokens = tokeniser([text])
    return {"input_ids": tokens.input_ids, "attention_mask": tokens.attention_mask}


@contextlib.contextmanager
def _plain(encoder: Encoder) -> Iterator[Encoder]:
    """The encoder in fp32 on the CPU, padded, in evaluation mode, attending in plain operations; then as it was.

    Of plain attention onnxscript knows the patterns, and nothing in it guards against rows without a token.
    """
    import torch

    weights = [*encoder.parameters()]
    if any(weight.device.type != "cpu" or weight.dtype != torch.float32 for weight in weights):
        encoder = copy.deepcopy(encoder).to(device="cpu", dtype=torch.float32)
    training, unpadded, attention = encoder.training, encoder.unpadded, encoder.backbone.config._attn_implementation
    encoder.set_unpadded(False)
    encoder.backbone.set_attn_implementation("eager")
    encoder.eval()
    try:
        yield encoder
    finally:
        encoder.train(training)
        encoder.backbone.set_attn_implementation(attention)
        encoder.set_unpadded(unpadded)
