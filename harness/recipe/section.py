"""What the sections of a recipe are made of: strictness, ranges, and settings that came later."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema, PydanticCustomError, core_schema

Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[int, Field(ge=1)]
Count = Annotated[int, Field(ge=0)]
PositiveFloat = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegativeFloat = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Name = Annotated[str, Field(min_length=1)]
Pooling = Literal["mean", "cls", "lasttoken"]
TextKind = Literal["queries", "documents", "unlabelled"]
SetName = Literal["select", "report", "test"]


@dataclass(frozen=True)
class _MetricOf:
    """A name such as P@10: one of ``kinds`` at any k."""

    kinds: str

    @property
    def pattern(self) -> str:
        return rf"({self.kinds})@[1-9][0-9]{{0,8}}"

    def checked(self, name: str) -> str:
        if re.fullmatch(self.pattern, name):
            return name
        allowed = ", ".join(f"{kind}@k" for kind in self.kinds.split("|"))
        raise PydanticCustomError("metric", "one of {allowed}; k: how many hits", {"allowed": allowed})

    def __get_pydantic_core_schema__(self, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return core_schema.no_info_after_validator_function(self.checked, handler(source))


Metric = Annotated[str, _MetricOf("P|nDCG|MRR|Recall|Hit")]
Measured = Annotated[str, _MetricOf("P|nDCG|MRR|Recall|Hit|judged")]  # judged@k is measured, and is no quality
System = Literal["teacher", "teacher-base", "teacher-more", "student-untrained", "student-aligned", "student-refined",
                 "student-int8", "student-ann"]  # fmt: skip
SYSTEMS: tuple[str, ...] = get_args(System)


_ADDED: dict[str, Any] = {"added": True}
_BESIDE: dict[str, Any] = {"beside": True}


def added(default: Any) -> Any:
    """The default of a setting that earlier versions did not have, and that leaves what they did.

    At its default it stays out of step keys: a run that was made before is still the run of its recipe.
    """
    return Field(default, json_schema_extra=_ADDED)


def beside(default: Any) -> Any:
    """The default of a setting that says how a result is come by and changes nothing of it: no step key has it."""
    return Field(default, json_schema_extra=_BESIDE)


class Section(BaseModel):
    """A part of the recipe: unknown keys are errors, a number in quotes is not a number, values don't change."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, protected_namespaces=())

    def keyed(self) -> dict[str, Any]:
        """What step keys are made of: all settings as plain data, but for ``beside`` and default ``added`` ones."""
        tree = self.model_dump(mode="json")
        for name, field in type(self).model_fields.items():
            value = getattr(self, name)
            if isinstance(value, Section):
                tree[name] = value.keyed()
            told = field.json_schema_extra
            if told == _BESIDE or (told == _ADDED and value == field.default):
                del tree[name]
        return tree


class Prompts(Section):
    """What is put before a text on either side; ``null`` keeps the model's own."""

    query: str | None = None
    document: str | None = None
