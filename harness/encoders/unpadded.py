"""Batches without padding: a chunk's texts one after the other in one row, each of which attends to itself alone.

A chunk is then ``input_ids`` int64_1T (T tokens of all its texts), ``cu_seq_lens`` int32_C (C = B + 1: where text b
begins and text b + 1 does, from 0 to T) and ``longest``, the tokens of its longest text. The names are those of
transformers' flash attention, which takes the same three; so does ``attend``, which needs no package beside torch.

Axes: B texts, T tokens of all texts, A attention heads, K heads of keys and values, E their size, H hidden size.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from harness.encoders.chain import WITHOUT_PADDING
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import logger

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

    from harness.encoders.encoder import Encoder

NAME = "harness_unpadded"
Chunk = Mapping[str, Any]


@functools.cache
def _kernel() -> Callable[..., Any] | None:
    """torch's flash attention over texts of different lengths, where torch is new enough (2.11)."""
    try:
        from torch.nn.attention.varlen import varlen_attn
    except ImportError:
        return None
    known = inspect.signature(varlen_attn).parameters
    if not {"scale", "window_size"} <= known.keys():
        return None
    # Fewer heads of keys than of queries: later versions want to be told, the kernel itself always knew.
    return functools.partial(varlen_attn, enable_gqa=True) if "enable_gqa" in known else varlen_attn


def _fits(head_size: int) -> bool:
    return head_size % 8 == 0 and head_size <= 256


def attend(
    module: nn.Module,
    query_1ATE: Tensor,
    key_1KTE: Tensor,
    value_1KTE: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    sliding_window: int | None = None,
    **places: Any,
) -> tuple[Tensor, None]:
    """Attention as transformers asks for it, [1, T, A, E]; ``places`` hold what ``places_of`` gave to the backbone.

    On a GPU in 16 bits one kernel for all texts, which knows no dropout; elsewhere, and for heads of a size that it
    does not take, text after text, which is slower and the same.
    """
    cu_seq_lens_C = places.get("cu_seq_lens_q")
    assert cu_seq_lens_C is not None, "this attention reads no mask: it is for batches without padding"
    causal = bool(getattr(module, "is_causal", False)) and getattr(module.config, "is_causal", True) is not False
    # As in flash attention: a window of w sees w - 1 tokens back, and as many ahead where it may look ahead.
    reach = -1 if sliding_window is None else sliding_window - 1
    window = reach, 0 if causal else reach
    kind = query_1ATE.device.type
    # Norms of heads leave queries and keys in fp32 under autocast; SDPA would be cast by it, and so is this.
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else value_1KTE.dtype
    query_1ATE, key_1KTE, value_1KTE = (state.to(dtype) for state in (query_1ATE, key_1KTE, value_1KTE))
    low = dtype in (torch.float16, torch.bfloat16)
    kernel = _kernel() if kind == "cuda" and low and _fits(query_1ATE.shape[-1]) else None
    if kernel is None:
        return _one_by_one(query_1ATE, key_1KTE, value_1KTE, cu_seq_lens_C, scaling, dropout, window), None
    assert not dropout, "see why_padded"
    query_TAE, key_TKE, value_TKE = (state[0].transpose(0, 1) for state in (query_1ATE, key_1KTE, value_1KTE))
    longest = places["max_length_q"]
    out_TAE = kernel(
        query_TAE, key_TKE, value_TKE, cu_seq_lens_C, cu_seq_lens_C, longest, longest, scale=scaling, window_size=window
    )
    return out_TAE[None], None


def _one_by_one(
    query_1ATE: Tensor, key_1KTE: Tensor, value_1KTE: Tensor, cu_seq_lens_C: Tensor, scaling: float | None,
    dropout: float, window: tuple[int, int],
) -> Tensor:  # fmt: skip
    back, ahead = window
    parts = []
    for start, end in pairwise(cu_seq_lens_C.tolist()):
        bias_LL = None
        if 0 <= back < end - start - 1:
            place_L = torch.arange(end - start, device=query_1ATE.device)
            away_LL = place_L[:, None] - place_L
            bias_LL = (away_LL <= back) & (away_LL >= -ahead)
        parts.append(
            nn.functional.scaled_dot_product_attention(
                query_1ATE[:, :, start:end], key_1KTE[:, :, start:end], value_1KTE[:, :, start:end],
                attn_mask=bias_LL, dropout_p=dropout, is_causal=ahead == 0 and bias_LL is None, scale=scaling,
                enable_gqa=True,
            )
        )  # fmt: skip
    return torch.cat(parts, dim=2).transpose(1, 2)


def switch(backbone: PreTrainedModel, wanted: bool) -> bool:
    """Let a backbone compute batches without padding, in place, or with padding again; returns whether it does.

    A backbone that has flash attention keeps it: it does both. Early versions of transformers 5 compute some
    architectures by an attention of their own, which can't be replaced.
    """
    from transformers import AttentionInterface

    now = backbone.config._attn_implementation
    if wanted and "flash" not in str(now):
        AttentionInterface.register(NAME, attend)  # no mask is registered: none is made
        backbone.set_attn_implementation(NAME)
        return backbone.config._attn_implementation == NAME
    if not wanted and now == NAME:
        backbone.set_attn_implementation("sdpa")
    return True


def why_padded(
    config: PreTrainedConfig, device: torch.device, *, bf16: bool, dropout: float = 0.0, own_attention: bool = True
) -> str | None:
    """What is in the way of batches without padding, in words; None: nothing.

    Args:
        config: the backbone's.
        bf16: whether the backbone computes in bfloat16.
        own_attention: by ``attend``; False for transformers' flash attention.
    """
    if config.model_type not in WITHOUT_PADDING:
        return f"not tried with models of type {config.model_type!r} (tried: {', '.join(sorted(WITHOUT_PADDING))})"
    if device.type == "cpu" or not own_attention:
        return None
    if not bf16:
        return "the kernel computes in 16 bits, and this is in fp32"
    if dropout:
        return "torch's kernel has no dropout"
    if _kernel() is None:
        return f"torch {torch.__version__} has no kernel for it (2.11 has)"
    size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    if not _fits(size):
        return f"the kernel takes heads of a multiple of 8 up to 256, and the model has {size}"
    if torch.cuda.get_device_capability(device) < (8, 0):
        return f"the kernel does not run on {torch.cuda.get_device_name(device)}"
    return None


def choose(
    encoder: Encoder, wanted: bool | Literal["auto"], *, bf16: bool, where: str, dropout: float = 0.0,
    attention: str = "auto",
) -> None:  # fmt: skip
    """Let an encoder compute without padding, or with it, as a setting, the device and the model have it.

    Args:
        wanted: ``auto``: on a GPU, where nothing is in the way; what is, is logged.
        where: the setting's name.
        attention: a kind that was named, or ``auto``.

    Raises:
        InputError: it is wanted, and something is in the way.
    """
    if wanted == "auto" and (encoder.device.type == "cpu" or attention in ("eager", "sdpa")):
        wanted = False  # text after text is slow on a CPU; who names an attention gets it
    reason = None
    if wanted:
        own, config = "flash" not in attention, encoder.backbone.config
        reason = why_padded(config, encoder.device, bf16=bf16, dropout=dropout, own_attention=own)
        if not reason and not switch(encoder.backbone, True):
            reason = f"this version of transformers has an attention of its own for {config.model_type!r}"
    if reason and wanted is True:
        raise InputError(Problem(f"batches need padding: {reason}", where=where, got="true", allowed="auto, false",
                                 next="set it to auto"))  # fmt: skip
    if reason:
        logger.info("%s: batches are padded: %s", where, reason)
    encoder.set_unpadded(bool(wanted) and not reason)


def without_padding(chunk: Chunk) -> Chunk:
    """A padded chunk (``input_ids``, ``attention_mask``) as one without; one that has none as it is.

    For callers that padded in vain: on a GPU it waits until the lengths are known on the host.
    """
    if "attention_mask" not in chunk:
        return chunk
    mask_BT = chunk["attention_mask"].bool()
    length_B = mask_BT.sum(1)
    cu_seq_lens_C = nn.functional.pad(length_B.cumsum(0), (1, 0)).int()
    return {"input_ids": chunk["input_ids"][mask_BT][None], "cu_seq_lens": cu_seq_lens_C,
            "longest": int(length_B.max())}  # fmt: skip


def places_of(chunk: Chunk, backbone: nn.Module) -> dict[str, Any]:
    """What a backbone is told of a chunk without padding: where its texts begin, and each token's place in its own."""
    cu_seq_lens_C, tokens = chunk["cu_seq_lens"], chunk["input_ids"].shape[1]
    start_T = cu_seq_lens_C[:-1].repeat_interleave(cu_seq_lens_C.diff(), output_size=tokens)
    place_T = torch.arange(tokens, device=cu_seq_lens_C.device) - start_T + _first_place(backbone)
    longest = chunk["longest"]
    return {"position_ids": place_T[None], "cu_seq_lens_q": cu_seq_lens_C, "cu_seq_lens_k": cu_seq_lens_C,
            "max_length_q": longest, "max_length_k": longest}  # fmt: skip


def _first_place(backbone: nn.Module) -> int:
    """RoBERTa's kin count positions from behind the padding's."""
    positions: Any = getattr(getattr(backbone, "embeddings", None), "position_embeddings", None)
    padding = getattr(positions, "padding_idx", None)
    return 0 if padding is None else int(padding) + 1


def pool_unpadded(hidden_TH: Tensor, cu_seq_lens_C: Tensor, pooling: str) -> Tensor:
    """As ``pool``, from the states of a chunk without padding: float32_BH."""
    if pooling == "cls":
        return hidden_TH[cu_seq_lens_C[:-1]].float()
    if pooling == "lasttoken":
        return hidden_TH[cu_seq_lens_C[1:] - 1].float()
    assert pooling == "mean", pooling
    length_B = cu_seq_lens_C.diff()
    text_B = torch.arange(len(length_B), device=length_B.device)
    text_T = text_B.repeat_interleave(length_B, output_size=len(hidden_TH))
    sum_BH = hidden_TH.new_zeros((len(length_B), hidden_TH.shape[1]), dtype=torch.float32)
    return sum_BH.index_add(0, text_T, hidden_TH.float()) / length_B[:, None]
