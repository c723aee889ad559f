"""How many bytes a forward pass keeps for its backward pass. Imports no torch.

Counted tensor by tensor, as torch's autograd keeps them of transformers' BERT-like and Qwen-like layers, after the
manner of Korthikanti et al. 2022 (section 4.1); tests hold that against what is kept. Without dropout, which keeps its
masks besides.

In a formula: H hidden size, A width of all query heads, K width of all key heads, F feed-forward units, L tokens of a
text; all is bytes for one token.
"""

from __future__ import annotations

from collections.abc import Iterable

from harness.pipeline.sizes import Model


def activation_bytes(
    model: Model, texts: Iterable[tuple[float, float]], *, bf16: bool = False, eager: bool = False, again: int = 0
) -> float:
    """Bytes kept of texts whose vectors are wanted together.

    Args:
        model: with adapters, only these are trained.
        texts: how many, and the tokens of one, for each kind of text.
        bf16: under autocast, whose casts of the weights are kept, too.
        eager: attention that keeps its scores; else a fused one.
        again: with gradient checkpointing, in how many chunks the texts pass through the model: each layer's input is
            kept, and one layer is computed again for one chunk at a time. 0: without.
    """
    texts = list(texts)
    one = sum(rows * tokens * _of_layer(model, tokens, bf16, eager) for rows, tokens in texts)
    number, count = 2 if _rests_in_bf16(model, bf16) else 4, sum(rows * tokens for rows, tokens in texts)
    outside = 2 * number * model.hidden * count  # what comes out of the token table, and the last norm or the first
    outside += _casts(model) if bf16 else 0.0
    if not again:
        return model.layers * one + outside
    passing = 4 * model.wide * count if bf16 and model.adapters else 0  # an adapter's input in fp32, for a moment
    return model.layers * number * model.hidden * count + (one + passing) / again + outside


def _rests_in_bf16(model: Model, bf16: bool) -> bool:
    """Whether adapters stand over weights in bf16: what passes through the model is then in bf16, too."""
    return bf16 and model.bf16 and bool(model.adapters)


def _casts(model: Model) -> float:
    """The weights of matrix products once more, in bf16, but for those that are in bf16 already."""
    trained = model.adapters or model.body
    return 2.0 * (trained if model.bf16 or not model.adapters else trained + model.body)


def _of_layer(model: Model, tokens: float, bf16: bool, eager: bool) -> float:
    number, hidden, queries, keys = 2 if bf16 else 4, model.hidden, model.heads * model.head, model.keys
    # Queries, keys (for every query head) and values, and what attention makes of them, which a plain layer's next
    # map counts below; adapters in bf16 keep that once more.
    attention: float = (4 if model.gated else 3) * number * queries
    if eager:
        scores = 2 if _rests_in_bf16(model, bf16) and not model.gated else 6 if bf16 else 4  # in fp32, and in bf16, too
        attention += model.heads * tokens * scores
    else:
        attention += 4 * model.heads + number * tokens + (number * queries if bf16 and model.adapters else 0)
    adapted = number * model.rank * (7 if model.gated else 6)
    if not model.gated:  # two LayerNorms; inputs of maps, of which autocast makes one copy for each map
        norms = 2 * (2 if _rests_in_bf16(model, bf16) else 4) * hidden
        return norms + (5 if bf16 else 3) * number * hidden + attention + 2 * number * model.wide + adapted
    norms = (2 if model.adapters else 4) * 4 * hidden  # in fp32; their own weights' gradients need their results, too
    if model.head_norms:
        norms += (4 + (0 if model.adapters else number)) * (queries + keys)
    return norms + (5 if bf16 else 2) * number * hidden + attention + 4 * number * model.wide + adapted
