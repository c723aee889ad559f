"""``harness verify`` of a pair: its queries must be the student's, its documents those of the frozen vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.pipeline import verify
from harness.runtime.errors import Problem, StaleArtefactError, gather_problems
from harness.runtime.process import fingerprint, read_json

if TYPE_CHECKING:
    from harness.pipeline.context import Run

_NEXT = "export it again: harness export RECIPE"


def verify_pair(folder: Path, index: Path, queries: Path | None) -> list[verify.Verified]:
    """Hold both towers of a pair against the run, or against its own weights where only vectors are at hand.

    Args and Raises: as of ``verify.verify``.
    """
    from harness.export.opening import by_sentence_transformers, by_us
    from harness.export.pair import check_pair
    from harness.export.parity import bounds_of, measure_parity
    from harness.pipeline.work_export import deployed, hold_documents
    from harness.vectors.space import Space, require_same_space

    told: dict[str, Any] = {}
    gather_problems(
        lambda: told.update(pair=check_pair(folder)),
        lambda: told.update(asked=verify.asked_of(index, queries)),
        lambda: verify.refuse_stale(folder, index),
    )
    asked: verify.Asked = told["asked"]
    questions, run = asked.questions, asked.run
    space: Space = Space.from_json(told["pair"].get("space"), where=str(folder / "harness.json"))
    require_same_space(space, asked.space, str(folder), str(index))
    opened = [by_us(folder)]
    if run is not None and run.recipe.export is not None:
        _refuse_other_towers(folder, told["pair"]["towers"], run)
        student_QD = run.open(deployed(run)).encode(questions.texts, side="query")
    else:
        student_QD = opened[0].queries(questions.texts)
    if verify.installed("sentence_transformers"):
        opened.append(by_sentence_transformers(folder))
    found, bounds = [], bounds_of("fp32", asked.settings)
    for one in opened:
        parity = measure_parity(one.queries, student_QD, questions, bounds)
        found.append(verify.Verified(f"pair, queries ({one.reader})", parity))
        if run is not None:
            found.append(verify.Verified(f"pair, documents ({one.reader})", hold_documents(run, one.documents)))
    return found


def _refuse_other_towers(folder: Path, towers: Any, run: Run) -> None:
    """Refuse a pair of another student or teacher than the run has now.

    Raises:
        StaleArtefactError: naming which.
    """
    from harness.pipeline.work_export import deployed

    own = {"teacher": run.folder.teacher, "student": deployed(run)}
    other = [name for name, place in own.items() if towers.get(name) != fingerprint(read_json(place / "harness.json"))]
    if other:
        raise StaleArtefactError(Problem(f"not the {' and the '.join(other)} that the run has now", where=str(folder),
                                         got="a pair of another training", allowed=str(run.folder.root),
                                         next=_NEXT))  # fmt: skip
