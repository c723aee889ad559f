"""Which layers a student keeps. Imports no torch: a recipe is checked with it."""

from __future__ import annotations

from harness.recipe import LayerRule
from harness.runtime.errors import InputError, Problem


def select_layers(count: int, layers: list[int] | LayerRule) -> list[int]:
    """Turn the recipe's choice, counted from 1, into positions counted from 0, in rising order.

    Args:
        count: layers that the model has.
        layers: a list, or ``first`` / ``last`` / ``middle-skip`` (the first one and the last ones) with a count.

    Raises:
        InputError: a layer that does not exist, stands twice or out of order, or more layers than there are.
    """
    where, allowed = "student.layers", f"1 to {count}"
    if isinstance(layers, LayerRule):
        if not 1 <= layers.count <= count:
            got = f"count: {layers.count}"
            raise InputError(Problem("the model has fewer layers", where=where, got=got, allowed=allowed))
        if layers.rule == "first":
            return list(range(layers.count))
        tail = layers.count - (layers.rule == "middle-skip")
        return [0] * (layers.rule == "middle-skip") + list(range(count - tail, count))
    if not layers or any(not 1 <= layer <= count for layer in layers):
        raise InputError(Problem("the model has no such layer", where=where, got=str(layers), allowed=allowed))
    if sorted(set(layers)) != list(layers):
        raise InputError(Problem("each layer once, in rising order", where=where, got=str(layers)))
    return [layer - 1 for layer in layers]
