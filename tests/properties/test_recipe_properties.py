"""Every key of a recipe, with any value that it may have: written as YAML and read again it is the same recipe."""

from __future__ import annotations

import math
import tempfile
import types
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic.fields import FieldInfo

from harness.recipe import Recipe, Section, dump_recipe, parse_yaml, validate_recipe
from harness.runtime.errors import InputError

TRICKY = ["yes", "null", "~", "1e5", "0x1f", "12_3", "2024-01-01", "1:30", "=", "- a", "a: b", "#", "'", '"', "\ufeff",
          "\u2028", "\x85", "\t", "a\nb", " a ", "%", "&x", "*x", "!!python/object:x", "{}", "[]", "😀", "1.", ".5",
          "+1", ".inf", ".nan", "NO", "12e4567", "\x00"]  # fmt: skip
TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=8) | st.sampled_from(TRICKY)


def _bounds(metadata: list[Any]) -> dict[str, Any]:
    """The limits that pydantic has noted: ``ge``, ``gt``, ``le``, ``lt``, ``min_length``, ``pattern``."""
    found: dict[str, Any] = {}
    for part in metadata:
        for item in part.metadata if isinstance(part, FieldInfo) else [part]:
            for name in ("ge", "gt", "le", "lt", "min_length", "pattern"):
                if getattr(item, name, None) is not None:
                    found[name] = getattr(item, name)
    return found


def _values(kind: Any, metadata: list[Any]) -> st.SearchStrategy[Any]:
    """Plain values that a key of this type may have."""
    origin, limits = get_origin(kind), _bounds(metadata)
    if origin is Annotated:
        inner, *more = get_args(kind)
        return _values(inner, [*metadata, *more])
    if origin in (Union, types.UnionType):
        return st.one_of([_values(part, metadata) for part in get_args(kind)])
    if origin is Literal:
        return st.sampled_from(get_args(kind))
    if origin is list:
        return st.lists(_values(get_args(kind)[0], []), min_size=limits.get("min_length", 0), max_size=3)
    if origin is dict:
        key, value = get_args(kind)
        return st.dictionaries(_values(key, []), _values(value, []), max_size=3)
    if kind is type(None):
        return st.none()
    if kind is bool:
        return st.booleans()
    if kind is int:
        return st.integers(limits.get("ge", -(10**9)), limits.get("le", 10**12))
    if kind is float:
        low, high = limits.get("gt", limits.get("ge", -1e300)), limits.get("lt", limits.get("le", 1e300))
        number = st.floats(low, high, exclude_min="gt" in limits, exclude_max="lt" in limits)
        return number | st.integers(math.floor(low) + 1, min(10**9, math.ceil(high) - 1)) if high - low > 2 else number
    if kind is str:
        text = st.from_regex(limits["pattern"], fullmatch=True) if "pattern" in limits else TEXT
        return text.filter(lambda value: len(value) >= limits.get("min_length", 0))
    assert isinstance(kind, type) and issubclass(kind, Section), f"a key of a type that this test does not know: {kind}"
    return _sections(kind)


def _sections(section: type[Section]) -> st.SearchStrategy[dict[str, Any]]:
    """A section as a tree, some keys left out where they may be."""
    keys = {name: st.deferred(lambda f=field: _values(f.annotation, f.metadata))  # type: ignore[misc]
            for name, field in section.model_fields.items()}  # fmt: skip
    needed = {name for name, field in section.model_fields.items() if field.is_required()}
    return st.fixed_dictionaries(
        {name: keys[name] for name in needed}, optional={name: keys[name] for name in keys if name not in needed}
    )


@settings(max_examples=60)
@given(tree=_sections(Recipe))
def test_recipe_to_yaml_to_recipe_is_the_identity(tree: dict[str, Any]) -> None:
    recipe = Recipe.model_validate(tree)
    with tempfile.TemporaryDirectory() as name:
        path = Path(name) / "recipe.resolved.yaml"
        dump_recipe(recipe, path)
        again = Recipe.model_validate(parse_yaml(path.read_text(encoding="utf-8"), str(path)))
        assert again == recipe and again.model_dump(mode="json") == recipe.model_dump(mode="json")
        dump_recipe(again, path.with_name("again.yaml"))
        assert path.read_bytes() == path.with_name("again.yaml").read_bytes()


@settings(max_examples=30)
@given(tree=_sections(Recipe))
def test_what_can_not_work_is_refused_in_words_and_nothing_else_happens(tree: dict[str, Any]) -> None:
    """Any well-formed recipe is either accepted or refused with where and why."""
    try:
        recipe = validate_recipe(tree, "recipe.yaml")
    except InputError as error:
        assert all(problem.what and problem.where.startswith("recipe.yaml: ") for problem in error.problems)
    else:
        assert recipe == Recipe.model_validate(tree)
