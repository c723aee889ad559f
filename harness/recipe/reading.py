"""YAML in, a validated recipe out, and back."""

from __future__ import annotations

import difflib
import hashlib
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from harness.recipe.impossible import impossible
from harness.recipe.messages import describe
from harness.recipe.settings import Recipe
from harness.runtime.errors import InputError, Problem
from harness.runtime.process import atomic_file

_SEAL = "# Resolved by harness: change your own recipe instead. sha256 of what follows: "


class _RecipeLoader(yaml.SafeLoader):
    """Safe YAML that reads ``2e-4`` as a number (YAML 1.1 wants ``2.0e-4``), a date as text, and no key twice."""

    # The class's own table; dates would arrive as objects, and an impossible one as a bare ValueError.
    yaml_implicit_resolvers = {
        first: [entry for entry in entries if entry[0] != "tag:yaml.org,2002:timestamp"]
        for first, entries in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        node = super().compose_mapping_node(anchor)
        seen = set()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode) and (key.tag, key.value) in seen:
                raise yaml.composer.ComposerError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
            seen.add((key.tag, key.value) if isinstance(key, yaml.ScalarNode) else id(key))
        return node


class _RecipeDumper(yaml.SafeDumper):
    """Puts into quotes what would not read back as it is: ``12e4567``, a revision, or line breaks of any alphabet."""

    def represent_text(self, text: str) -> yaml.Node:
        return self.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


_RecipeDumper.add_representer(str, _RecipeDumper.represent_text)

for _side in (_RecipeLoader, _RecipeDumper):
    _side.add_implicit_resolver(
        "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*(\.[0-9_]*)?[eE][-+]?[0-9]+$"), list("-+0123456789")
    )


def parse_yaml(text: str, where: str) -> Any:
    """Parse YAML safely: no tags that build Python objects.

    Raises:
        InputError: it is no YAML, or asks for more than plain values; names line and column.
    """
    try:
        loader = _RecipeLoader(text)
        try:
            return loader.get_single_data()
        finally:
            loader.dispose()
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        place = f"{where}:{mark.line + 1}:{mark.column + 1}" if mark else where
        problem = str(getattr(error, "problem", None) or error).splitlines()[0]
        plain = "maps, lists, text, numbers, true and false"
        raise InputError(Problem("not a plain YAML file", where=place, got=problem, allowed=plain)) from None


def apply_overrides(tree: Mapping[str, Any], overrides: Sequence[str]) -> dict[str, Any]:
    """A copy of ``tree`` with ``a.b=value`` assignments, the value read as YAML; sections on the way are created.

    Raises:
        InputError: an assignment without ``=`` or through something that is no section.
    """
    tree, problems = dict(tree), []
    for text in overrides:
        path, equals, value = text.partition("=")
        keys = path.strip().split(".")
        if not equals or not all(keys):
            problems.append(Problem("not an assignment", where=f"--set {text}", allowed="--set section.key=value"))
            continue
        node = tree
        for key in keys[:-1]:
            child = {} if node.get(key) is None else node[key]
            # A copy: two sections may be one object, by a YAML anchor.
            node[key] = node = dict(child) if isinstance(child, dict) else child
            if not isinstance(node, dict):
                hint = f"give the whole value: --set {key}=..."
                problems.append(Problem(f"{key!r} is a value, not a section", where=f"--set {text}", next=hint))
                break
        else:
            try:
                node[keys[-1]] = parse_yaml(value, f"--set {text}")
            except InputError as error:
                problems.extend(error.problems)
    if problems:
        raise InputError(problems)
    return tree


def load_recipe(path: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read, override and validate a recipe.

    Raises:
        InputError: with every problem found: unknown keys (and the nearest valid name), wrong types, values out of
            range, combinations that can't work.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.yaml")], 1)
        hint = f"did you mean {path.parent / near[0]}?" if near else "give a recipe, e.g. recipes/quickstart.yaml"
        raise InputError(Problem("no such recipe", where=str(path), next=hint)) from None
    except (OSError, UnicodeDecodeError) as error:
        wide = isinstance(error, UnicodeDecodeError) and error.object.startswith((BOM_UTF16_LE, BOM_UTF16_BE))
        raise InputError(
            Problem("the recipe can't be read as UTF-8 text", where=str(path), got="UTF-16" if wide else str(error),
                    next="save it as UTF-8" if isinstance(error, UnicodeDecodeError) else "name a YAML file")
        ) from None  # fmt: skip
    tree = parse_yaml(text, str(path))
    if not isinstance(tree, dict):
        kind = {type(None): "nothing", list: "a list"}.get(type(tree), "a single value")
        raise InputError(
            Problem("a recipe is a map of sections", where=str(path), got=kind, allowed=", ".join(Recipe.model_fields),
                    next="start from recipes/quickstart.yaml")
        )  # fmt: skip
    return validate_recipe(apply_overrides(tree, overrides), str(path))


def validate_recipe(tree: Mapping[str, Any], where: str) -> Recipe:
    """Turn a parsed tree into a ``Recipe``; raises ``InputError`` with all problems."""
    try:
        recipe = Recipe.model_validate(tree)
    except ValidationError as error:
        raise InputError(describe(error.errors(include_url=False), tree, where)) from None
    problems = [Problem(what, where=f"{where}: {key}", next=hint) for key, what, hint in impossible(recipe)]
    if problems:
        raise InputError(problems)
    return recipe


def dump_recipe(recipe: Recipe, path: str | Path) -> None:
    """Write the resolved recipe under a line with its sha256; reading it again gives an equal recipe."""
    text = yaml.dump(recipe.model_dump(mode="json"), None, _RecipeDumper, sort_keys=False, allow_unicode=True)
    with atomic_file(path, "w") as stream:
        stream.write(f"{_SEAL}{hashlib.sha256(text.encode()).hexdigest()}\n{text}")


def unedited(path: Path) -> bool:
    """Whether a resolved recipe is as ``dump_recipe`` wrote it; true of a recipe that tells no sha256."""
    head, _, rest = path.read_bytes().partition(b"\n")
    seal = _SEAL.encode()
    return not head.startswith(seal) or head.removeprefix(seal).decode() == hashlib.sha256(rest).hexdigest()
