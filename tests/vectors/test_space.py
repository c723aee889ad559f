from __future__ import annotations

from types import SimpleNamespace

import pytest
from builders.vectors import toy_space

from harness.runtime.errors import InputError, StaleArtefactError
from harness.vectors.space import Space, require_same_space


def test_a_space_is_read_off_an_encoder_and_survives_json() -> None:
    encoder = SimpleNamespace(prompts={"query": "q: "}, pooling="cls", dimension=8, normalize=True, weights="unused")
    space = Space.of(encoder, "abc")
    assert space == Space("abc", "q: ", "", "cls", 8, True)
    assert Space.from_json(space.to_json()) == space
    assert space.fingerprint == Space.from_json(space.to_json()).fingerprint != toy_space().fingerprint


def test_spaces_of_equal_dimension_are_refused_naming_both_and_what_differs() -> None:
    require_same_space(toy_space(), toy_space(), "the store", "the student")
    with pytest.raises(StaleArtefactError) as caught:
        require_same_space(toy_space("one"), toy_space("two", normalized=False), "the store", "the student")
    message = str(caught.value)
    assert "teacher: 'one' in the store, 'two' in the student" in message
    assert "normalized: True in the store, False in the student" in message
    assert "pooling:" not in message


@pytest.mark.parametrize("change", [{"dimension": "8"}, {"normalized": 1}, {"teacher": None}, {"extra": 1}])
def test_a_damaged_description_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(InputError, match=r"here\.json"):
        Space.from_json({**toy_space().to_json(), **change}, where="here.json")
    with pytest.raises(InputError):
        Space.from_json([])
