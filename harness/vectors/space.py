"""What two vectors must share to be comparable: the space of a teacher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Protocol

from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import fingerprint


class _SpaceMaker(Protocol):
    """What ``Space.of`` reads of an encoder."""

    @property
    def prompts(self) -> Mapping[str, str]: ...
    @property
    def pooling(self) -> str: ...
    @property
    def dimension(self) -> int: ...
    @property
    def normalize(self) -> bool: ...


@dataclass(frozen=True, slots=True)
class Space:
    """The target space that vectors live in. It names the teacher, never the student that learnt to reach it.

    Args:
        teacher: sha256 of the teacher's weights (or another name of them, where there are only vectors).
        query_prompt: what the teacher puts before a query.
        document_prompt: what the teacher puts before a document.
        pooling: ``mean``, ``cls`` or ``lasttoken``.
        dimension: length of a vector.
        normalized: whether vectors have length 1.
    """

    teacher: str
    query_prompt: str
    document_prompt: str
    pooling: str
    dimension: int
    normalized: bool

    @classmethod
    def of(cls, encoder: _SpaceMaker, weights_sha256: str) -> Space:
        """The space of a teacher: an encoder and the sha256 of its weights."""
        return cls(
            teacher=weights_sha256,
            query_prompt=encoder.prompts.get("query", ""),
            document_prompt=encoder.prompts.get("document", ""),
            pooling=encoder.pooling,
            dimension=encoder.dimension,
            normalized=encoder.normalize,
        )

    @property
    def fingerprint(self) -> str:
        """One sha256 over all fields."""
        return fingerprint(self.to_json())

    def to_json(self) -> dict[str, Any]:
        """The fields, to be written into a manifest."""
        return asdict(self)

    @classmethod
    def from_json(cls, value: Any, where: str = "space") -> Space:
        """The space that ``to_json`` wrote.

        Raises:
            InputError: a field is missing, unknown or of another type; ``where`` names the file.
        """
        types = {"dimension": int, "normalized": bool}
        names = [field.name for field in fields(cls)]
        if (
            not isinstance(value, dict)
            or sorted(value) != sorted(names)
            or any(type(value[name]) is not types.get(name, str) for name in names)
        ):
            raise InputError(
                Problem("not the description of a space", where=where, got=str(value)[:200], allowed=", ".join(names),
                        next="delete the artefact and run its step again")
            )
        return cls(**value)


def require_same_space(a: Space, b: Space, name_a: str, name_b: str) -> None:
    """Refuse to compare vectors of two spaces, equal dimension or not.

    Raises:
        StaleArtefactError: the spaces differ; it names both artefacts and every field that differs.
    """
    if a == b:
        return
    left, right = a.to_json(), b.to_json()
    differences = "; ".join(
        f"{name}: {left[name]!r} in {name_a}, {right[name]!r} in {name_b}" for name in left if left[name] != right[name]
    )
    raise StaleArtefactError(
        Problem(
            "two different spaces: their vectors can't be compared",
            where=f"{name_a} and {name_b}",
            got=differences,
            allowed="vectors of the same teacher, prompts, pooling, dimension and normalisation",
            next=f"make {name_a} or {name_b} again, so that both come from one teacher",
        )
    )
