"""From a batch's chunks to gradients, directly or with cached gradients (GradCache, Gao et al. 2021, arXiv 2101.06983).

Directly, the activations of all chunks wait in memory for the backward pass. Cached: every chunk is encoded without
a graph; the loss of all vectors gives each vector's gradient; then chunk after chunk is encoded again, with a graph,
and sent its vectors' gradients. So memory holds one chunk's activations, for one more forward pass, and the gradients
are the same: random numbers too, for each chunk starts where it started the first time.

Axes: B texts of a batch, D dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from harness.runtime.distributed import join_rows, world_size

Backward = Callable[..., None]  # backward(loss, sync=True); sync only with the last chunk of a step
Losses = Callable[[Tensor], dict[str, Tensor]]  # vector_BD, in the batch's order -> "loss", and its parts to log


def learn(
    model: nn.Module,
    batch: Mapping[str, Any],
    losses: Losses,
    backward: Backward,
    *,
    cached: bool = False,
    others: Sequence[nn.Parameter] = (),
) -> dict[str, float]:
    """Encode ``batch["chunks"]``, compute the losses and call ``backward``; returns the losses as numbers.

    Args:
        losses: a function of the vectors of this process; it may gather those of the others.
        others: trained parameters that ``losses`` uses without the model.
    """
    if cached:
        return _learn_cached(model, batch, losses, backward, others)
    found = losses(model(chunks=batch["chunks"])[batch["restore"]])
    backward(found["loss"])
    return _numbers(found)


def _learn_cached(
    model: nn.Module, batch: Mapping[str, Any], losses: Losses, backward: Backward, others: Sequence[nn.Parameter]
) -> dict[str, float]:
    chunks, device = batch["chunks"], batch["chunks"][0]["input_ids"].device
    # Where parameters are sharded, a forward pass needs all processes: who has fewer chunks repeats its last in vain.
    rounds = int(join_rows(np.array([len(chunks)]), world_size()).max())
    states, vectors = [], []
    with torch.no_grad():
        for number in range(rounds):
            states.append(_random_state(device))
            vectors.append(model(chunks=[chunks[min(number, len(chunks) - 1)]]))
    torch.clear_autocast_cache()  # older versions of torch keep weights in bf16 there that have no graph
    after = _random_state(device)
    vector_BD = torch.cat(vectors[: len(chunks)]).requires_grad_()
    found = losses(vector_BD[batch["restore"]])
    gradient_BD, *other_gradients = torch.autograd.grad(found["loss"], [vector_BD, *others])
    sizes = [len(part) for part in vectors]
    gradients = [*gradient_BD.split(sizes[: len(chunks)]), *map(torch.zeros_like, vectors[len(chunks) :])]
    # Its gradient is the other parameters': they are given with the last backward pass, scaled as all are.
    rest = sum((parameter * gradient).sum() for parameter, gradient in zip(others, other_gradients, strict=True))
    for number, (state, chunk_gradient_BD) in enumerate(zip(states, gradients, strict=True)):
        _set_random_state(state, device)
        again_BD = model(chunks=[chunks[min(number, len(chunks) - 1)]])
        last = number == rounds - 1
        backward((again_BD * chunk_gradient_BD).sum() + (rest if last else 0), sync=last)
    _set_random_state(after, device)
    return _numbers(found)


def _numbers(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Tensors of one element as numbers; the host waits for the device once, not once for each."""
    told = torch.stack([value.detach().reshape(()) for value in values.values()])
    return dict(zip(values, told.tolist(), strict=True))


def _random_state(device: torch.device) -> tuple[Tensor, Tensor | None]:
    return torch.get_rng_state(), torch.cuda.get_rng_state(device) if device.type == "cuda" else None


def _set_random_state(state: tuple[Tensor, Tensor | None], device: torch.device) -> None:
    torch.set_rng_state(state[0])
    if state[1] is not None:
        torch.cuda.set_rng_state(state[1], device)
