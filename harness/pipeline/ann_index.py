"""The approximate indexes of a run: where they lie, how they are opened, and which effort the deployed one gets."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.recipe import Recipe
from harness.runtime.errors import InputError, Problem, StaleArtefactError
from harness.runtime.process import logger, read_json
from harness.vectors.approximate import ApproximateIndex, AsAsked

if TYPE_CHECKING:
    from harness.pipeline.context import Run
    from harness.recipe import AnnSettings

SYSTEM = "student-ann"  # the deployed student, searching the first approximate index


def deployed_system(recipe: Recipe) -> str:
    """The student that is deployed: the one that the recipe exports, else the last one that it trains."""
    if recipe.export:
        return recipe.export.system
    return "student-refined" if recipe.refine else "student-aligned" if recipe.align else "student-untrained"


def open_approximate(run: Run, kind: str) -> ApproximateIndex:
    """An approximate index of this run.

    Raises:
        InputError: there is none. StaleArtefactError: it is damaged, or was built from other vectors or otherwise.
    """
    settings, store = ann_settings(run), run.store("documents")
    folder = run.folder.approximate / kind
    index = ApproximateIndex.load(folder, store.space, store_sha256=store.sha256)
    wanted = {name: value for name, value in settings.parameters(kind).items() if value is not None}
    got = {**index.parameters, "seed": index.seed, "threads": index.threads}
    wanted |= {"seed": run.recipe.seed, "threads": settings.threads}
    other = [name for name, value in wanted.items() if got.get(name) != value]
    if other or index.ids != run.dataset.documents.ids:
        raise StaleArtefactError(Problem("an approximate index of other settings or documents", where=str(folder),
                                         got=", ".join(f"{name}: {got.get(name)}" for name in other),
                                         next="run the step bench.ann again"))  # fmt: skip
    return index


def deployed_index(run: Run) -> AsAsked:
    """What ``student-ann`` searches: the recipe's first approximate index, at the effort that was set or found."""
    settings = ann_settings(run)
    kind, effort = settings.indexes[0], ann_effort(run)
    logger.info("%s searches %s at effort %d", SYSTEM, kind, effort)
    return AsAsked(open_approximate(run, kind).at(effort), settings.k)


def ann_effort(run: Run) -> int:
    """The effort of ``student-ann``. Raises what ``deployed_effort`` raises."""
    return int(deployed_effort(run)["effort"])


def deployed_effort(run: Run) -> dict[str, Any]:
    """``{"index", "effort", "why"}`` of ``student-ann``: the recipe's effort ("set"), else the one found to stay within
    1 % ("within 1 %"), else the largest measured ("1 % not reached").

    Raises:
        InputError: the step bench.ann did not measure it.
    """
    settings = ann_settings(run)
    kind = settings.indexes[0]
    if settings.effort:
        return {"index": kind, "effort": settings.effort, "why": "set"}
    told = read_json(run.folder.ann, next="run the step bench.ann again")
    try:
        own = told["indexes"][kind]["systems"][deployed_system(run.recipe)]
        held, most = own["within_1_percent"], own["curve"][-1]["effort"]
    except (KeyError, IndexError, TypeError):
        raise InputError(Problem("no effort was measured", where=str(run.folder.ann),
                                 next="run the step bench.ann again, or set bench.ann.effort")) from None  # fmt: skip
    why = "1 % not reached" if held is None else "within 1 %"
    return {"index": kind, "effort": int(held or most), "why": why}


def approximately(run: Run) -> list[str]:
    """What the evaluation of ``student-ann`` depends on besides encoder and documents."""
    settings = ann_settings(run)
    kind = settings.indexes[0]
    parameters = [f"{name} {value}" for name, value in sorted(settings.parameters(kind).items())]
    return [kind, *parameters, f"effort {ann_effort(run)}", f"k {settings.k}", f"threads {settings.threads}"]


def ann_settings(run: Run) -> AnnSettings:
    """The section, where the recipe has it."""
    assert run.recipe.bench is not None and run.recipe.bench.ann is not None, "planned only with the section"
    return run.recipe.bench.ann
