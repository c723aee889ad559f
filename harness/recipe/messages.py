"""What pydantic found wrong, in words for people: where, got, allowed, and the nearest valid name."""

from __future__ import annotations

import difflib
import re
import reprlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, get_args, get_origin

from harness.recipe.section import Section
from harness.recipe.settings import Recipe
from harness.runtime.errors import Problem

Key = tuple[int | str, ...]
_EXPECTED = {
    "int_type": "a whole number", "float_type": "a number", "string_type": "text", "bool_type": "true or false",
    "list_type": "a list", "dict_type": "a section", "finite_number": "a finite number",
}  # fmt: skip


def _fields_at(key: Key) -> list[str]:
    """The valid keys of the section at ``key``; none if no section stands there."""
    model: Any = Recipe
    named = False
    for part in key:
        if isinstance(part, int) or named:  # an element of a list of sections, or of a map
            named = False
            continue
        field = model.model_fields.get(part)
        named = field is not None and get_origin(field.annotation) is dict
        candidates = [field.annotation, *getattr(field.annotation, "__args__", ())] if field else []
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)
        if model is None:
            return []
    return sorted(model.model_fields)


def _choices_at(key: Key) -> list[str]:
    """What the list at ``key`` may hold, where that is a choice of names; none for every other key."""
    model: Any = Recipe
    for part in key[:-1]:
        field = model.model_fields.get(part)
        candidates = [field.annotation, *get_args(field.annotation)] if field else []
        model = next((c for c in candidates if isinstance(c, type) and issubclass(c, Section)), None)
        if model is None:
            return []
    field = model.model_fields.get(key[-1])
    element = next(iter(get_args(field.annotation)), None) if field and get_origin(field.annotation) is list else None
    return [str(name) for name in get_args(element)] if get_origin(element) is Literal else []


def _place(details: Any, tree: Any) -> tuple[Key, Key | None]:
    """Where an error stands in the file, and the key of the union that it came from, if any.

    pydantic puts names of its own between the keys, one for each alternative of a union; these are in no file.
    """
    node, key, union = tree, [], None
    for part in details["loc"]:
        if part in node if isinstance(node, Mapping) else isinstance(node, list) and isinstance(part, int):
            node = node[part]
            key.append(part)
        elif details["type"] == "missing" and len(key) + (union is not None) == len(details["loc"]) - 1:
            key.append(part)
        else:
            union = tuple(key)
    return tuple(key), union


def describe(errors: Sequence[Any], tree: Any, where: str) -> list[Problem]:
    """pydantic's errors in our words. Where one alternative of a union nearly fits, the others are silent."""
    placed = [(*_place(details, tree), details) for details in errors]
    found: dict[tuple[Key, Key | None, Any], Problem] = {}
    for key, union, details in placed:
        if key == union and any(u == union and len(k) > len(key) for k, u, _ in placed):
            continue
        problem = _problem(key, details, f"{where}: {'.'.join(map(str, key))}")
        slot = (key, union, None if key == union else details["type"])
        first = found.get(slot)
        found[slot] = replace(first, allowed=f"{first.allowed} or {problem.allowed}") if first else problem
    return list(found.values())


def _problem(key: Key, details: Any, where: str) -> Problem:
    """One pydantic error at ``key``."""
    kind, given, name = details["type"], details["input"], str(key[-1])
    if kind == "missing":
        return Problem(f"the key {name!r} is missing", where=where, next=f"add {'.'.join(map(str, key))}")
    if kind == "extra_forbidden":
        valid = _fields_at(key[:-1])
        near = difflib.get_close_matches(name, valid, 1)
        hint = f"did you mean {near[0]!r}?" if near else "remove it"
        return Problem(f"unknown key {name!r}", where=where, allowed=", ".join(valid), next=hint)
    allowed = re.sub(r"^\w+ should (be |have |match )?| after validation, .*", "", details["msg"])
    allowed = _EXPECTED.get(kind, allowed)
    if kind == "model_type":
        allowed = f"a section with {', '.join(_fields_at(key))}"
    hint = ""
    if kind in ("int_type", "float_type") and isinstance(given, str) and re.fullmatch(r"[-+\d._eE]+", given):
        hint = "write the number without quotes"
    elif kind == "string_type" and isinstance(given, bool | int | float):
        hint = "put it in quotes"
    elif kind == "list_type" and (names := _choices_at(key)):
        allowed = f"a list of {', '.join(names)}"
        hint = f"write [{given if given in names else names[0]}], for example, or [] for none"
    elif kind == "literal_error":
        near = difflib.get_close_matches(str(given), re.findall(r"'([^']*)'", details["ctx"]["expected"]), 1)
        hint = f"did you mean {near[0]!r}?" if near else ""
    elif kind == "less_than_equal" and isinstance(details["ctx"]["le"], float) and 10 <= given <= 100:
        hint = f"{given:g} % is {given / 100:g}"
    return Problem("value refused", where, "nothing" if given is None else _short.repr(given), allowed, hint)


_short = reprlib.Repr()
_short.maxstring = _short.maxother = 120
