"""``harness verify FOLDER --index ...``: is a deployed folder still the student, on this machine and on that index?

The folder's own weights, in torch, answer real queries over the frozen index, and so does every ONNX file beside them;
where sentence-transformers is installed, it does, too. What differs by more than the bounds fails. Of a pair, both
towers are verified: queries as the student's, documents against the frozen vectors where their texts are known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.data.pairs import read_unlabelled
from harness.data.reading import PREVIEW_LINES, Reading, find_files
from harness.data.records import Documents, Record
from harness.pipeline.folder import RunFolder, refuse_edited_recipe
from harness.pipeline.manifest import Manifest
from harness.pipeline.surroundings import installed
from harness.recipe import DataSettings, ParitySettings, Texts, load_recipe
from harness.runtime.errors import InputError, Problem, StaleArtefactError, gather_problems
from harness.runtime.process import logger, read_json

if TYPE_CHECKING:
    from harness.export.parity import Encode, Questions
    from harness.pipeline.context import Run
    from harness.vectors.space import Space

RECIPE = "recipe.resolved.yaml"
PER_LANGUAGE = 1_000  # queries of each language, of a file at most


@dataclass(frozen=True)
class Verified:
    """One artefact and what was found; ``parity`` as ``export.parity.measure_parity`` tells it."""

    artefact: str
    parity: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Whether it may be deployed here."""
        return bool(self.parity["passed"])


def verify(folder: Path, index: Path, queries: Path | None = None) -> list[Verified]:
    """Hold every artefact of a deployed folder against its weights.

    Args:
        folder: what ``harness export`` wrote (``export/student`` or ``export/pair``), wherever it is now.
        index: the folder of a run, a store of vectors, or an index that was handed over (``export/index``).
        queries: a file of query texts (``.txt``, JSONL or Parquet with ``text`` and ``lang``); None: those of the run.

    Raises:
        InputError: an adapter that is not merged, no tokenizer, no queries, an index that can't be read; all at once.
        StaleArtefactError: a file of the folder or of the index was edited or swapped, their spaces differ, or the
            run's documents or models changed since it was exported.
    """
    if (folder / "router_config.json").is_file():
        from harness.pipeline.verify_pair import verify_pair

        return verify_pair(folder, index, queries)
    from harness.encoders.folder import open_encoder
    from harness.engines.deployed import ONNX, check_onnx, onnx_precisions, read_parity
    from harness.export.parity import bounds_of, measure_parity
    from harness.export.student import check_student
    from harness.vectors.space import Space, require_same_space

    told: dict[str, Any] = {}
    has_onnx = (folder / ONNX).is_dir()
    gather_problems(
        lambda: told.update(folder=check_student(folder)),
        lambda: check_onnx(folder, onnx_precisions(folder)) if has_onnx else None,
        lambda: told.update(parity=read_parity(folder) if has_onnx else None),
        lambda: told.update(asked=asked_of(index, queries)),
        lambda: refuse_stale(folder, index),
    )
    space: Space = Space.from_json(told["folder"].get("space"), where=str(folder / "harness.json"))
    asked: Asked = told["asked"]
    questions, settings = asked.questions, asked.settings
    require_same_space(space, asked.space, str(folder), str(index))
    if has_onnx and told["parity"] is None:
        logger.warning("verify: %s is missing or not sealed: the %s bounds apply to the ONNX files",
                       folder / ONNX / "parity.json", "run's" if (index / RECIPE).is_file() else "default")  # fmt: skip
    student_QD = open_encoder(folder).encode(questions.texts, side="query")
    found = []
    for name, (precision, open_artefact) in _artefacts(folder).items():
        bounds = bounds_of(precision, _bounds(folder, told["parity"] or {}, precision) or settings)
        found.append(Verified(name, measure_parity(open_artefact(), student_QD, questions, bounds)))
    return found


def _artefacts(folder: Path) -> dict[str, tuple[str, Callable[[], Encode]]]:
    """Name -> (precision, how to open it): one at a time is in memory."""
    from harness.engines.deployed import onnx_precisions
    from harness.engines.torch_eager import TorchEngine

    def onnx(precision: str) -> Callable[[], Encode]:
        def open_it() -> Encode:
            from harness.engines.onnx_runtime import OnnxEngine

            return OnnxEngine(folder, precision=precision, verify=False).encode

        return open_it

    def torch() -> Encode:
        from harness.encoders.folder import open_encoder

        return TorchEngine(open_encoder(folder)).encode

    def sentence_transformers() -> Encode:
        from harness.export.opening import by_sentence_transformers

        return by_sentence_transformers(folder).queries

    found: dict[str, tuple[str, Callable[[], Encode]]] = {"torch": ("fp32", torch)}
    if installed("sentence_transformers"):
        found["sentence-transformers"] = ("fp32", sentence_transformers)
    return found | {f"onnx {precision}": (precision, onnx(precision)) for precision in onnx_precisions(folder)}


def _bounds(folder: Path, parity: Mapping[str, Any], precision: str) -> ParitySettings | None:
    """The bounds that an ONNX file was exported under, which travel with it."""
    try:
        return ParitySettings.model_validate(parity[precision]["bounds"]) if precision in parity else None
    except (ValueError, KeyError, TypeError):
        raise InputError(Problem("damaged", where=str(folder / "onnx" / "parity.json"),
                                 got="no bounds that can be read",
                                 allowed=", ".join(ParitySettings.model_fields),
                                 next="export the folder again")) from None  # fmt: skip


# ------------------------------------------------------------------------------------------ what is asked, and where


@dataclass(frozen=True)
class Asked:
    """The questions, the index's space, bounds for what brings none, and the run that they are of, if any."""

    questions: Questions
    space: Space
    settings: ParitySettings
    run: Run | None = None


def asked_of(index: Path, queries: Path | None) -> Asked:
    """What is asked on an index.

    Raises:
        InputError: no index, or no queries. StaleArtefactError: the index was edited, or is not of today's documents.
    """
    if (index / RECIPE).is_file():
        return _of_run(RunFolder(index), queries)
    if not (index / "manifest.json").is_file():
        raise InputError(
            Problem("no index here", where=f"--index {index}", got="neither recipe.resolved.yaml nor manifest.json",
                    allowed="the folder of a run, a store of vectors (vectors/documents), or an index that was handed "
                    "over (export/index)", next="name one of these")
        )  # fmt: skip
    told = read_json(index / "manifest.json")
    if isinstance(told, dict) and "parts" in told and "kind" in told:
        root = index.resolve().parent
        raise InputError(
            Problem("the search index of a run, which does not hold its vectors' rows", where=f"--index {index}",
                    got="index/ of a run", allowed="the folder of a run, its vectors/documents, or its export/index",
                    next=f"name {root}" if (root / RECIPE).is_file() else "name one of these")
        )  # fmt: skip
    if queries is None:
        raise InputError(Problem("these vectors come without queries", where=f"--index {index}", got="no --queries",
                                 allowed="query texts, one a line (.txt), JSONL or Parquet",
                                 next="name a file of query texts: --queries FILE"))  # fmt: skip
    records = read_queries(queries)
    from harness.export.index import is_handed_over, open_handed_over
    from harness.export.parity import Questions
    from harness.vectors.index import VectorIndex
    from harness.vectors.store import VectorStore

    if is_handed_over(index):
        _refuse_stale_index(index)
        handed = open_handed_over(index)
        ids, space, built = handed.ids, handed.space, VectorIndex.build(handed.vector_ND, handed.ids, kind="exact")
    else:
        store = VectorStore.open(index, verify=True)
        ids, space, built = store.ids, store.space, VectorIndex.build(store.vectors(), store.ids)
    blank = [""] * len(ids)
    return Asked(Questions(records, Documents(ids, blank, blank, blank), built), space, ParitySettings())


def refuse_stale(folder: Path, index: Path) -> None:
    """Refuse what lies in the run's own ``export/`` and was made before its documents or models changed.

    Raises:
        StaleArtefactError: naming the steps.
    """
    if not (index / RECIPE).is_file():
        return
    run = RunFolder(index)
    manifest, here = Manifest(run), folder.resolve()
    student, pair = run.export / "student", run.export / "pair"
    steps = {"export": student, "export.onnx": student, "export.pair": pair}
    stale = [step for step, place in steps.items()
             if here == place.resolve() and step in manifest.steps and not manifest.current(step)]  # fmt: skip
    if stale:
        raise StaleArtefactError(
            Problem("exported before the run's documents or models changed", where=str(folder),
                    got=f"{', '.join(stale)}: not done with what the run holds now", allowed="what is exported anew",
                    next="harness run RECIPE makes it anew")
        )  # fmt: skip


def _refuse_stale_index(index: Path) -> None:
    """Refuse an index that still lies in its run, whose documents were updated since."""
    root = index.resolve().parent.parent
    if not (root / RECIPE).is_file() or not (root / "vectors" / "documents" / "manifest.json").is_file():
        return
    from harness.vectors.store import VectorStore

    told, now = read_json(index / "manifest.json"), VectorStore.open(root / "vectors" / "documents").sha256
    if told.get("store") != now:
        raise StaleArtefactError(
            Problem("handed over before the run's documents changed", where=str(index),
                    got=f"vectors {str(told.get('store'))[:12]}", allowed=f"vectors {now[:12]}",
                    next="harness run RECIPE hands them over anew")
        )  # fmt: skip


def _of_run(folder: RunFolder, queries: Path | None) -> Asked:
    from harness.export.parity import Questions
    from harness.pipeline.context import Run
    from harness.pipeline.work_export import asked

    manifest = Manifest(folder)
    manifest.refuse_unfinished_update()
    refuse_edited_recipe(folder)
    manifest.require_untouched([folder.data, folder.index])
    run = Run(load_recipe(folder.recipe), folder, {})
    dataset = run.dataset
    within = dataset.search_within and queries is None  # a file need not know the data's languages
    records = asked(run) if queries is None else read_queries(queries)
    settings = run.recipe.export.parity if run.recipe.export else ParitySettings()
    questions = Questions(records, dataset.documents, run.frozen_index(), within)
    return Asked(questions, run.store("documents").space, settings, run)


def read_queries(path: Path) -> list[Record]:
    """Query texts of a file, some of each language; nothing is known to answer them.

    Raises:
        InputError: the file can't be found or read, or lines of it can't be used.
    """
    from harness.export.parity import some_of_each

    try:
        find_files(str(path), "--queries")
    except InputError as error:
        got = "a folder" if path.is_dir() else "nothing"
        raise InputError([replace(problem, got=got, next="correct the name") for problem in error.problems]) from None
    reading = Reading(PREVIEW_LINES)
    pairs = read_unlabelled(DataSettings(source="emoji", unlabelled=[Texts(path=str(path))]), reading)
    problems = [replace(problem, next="correct the file") for problem in reading.problems()]
    if not pairs and not problems:
        problems = [Problem("no queries", where=str(path), got="no text in it", allowed="at least one",
                            next="give one query a line")]
    if problems:
        raise InputError(problems)
    records = [Record(f"q{number}", text, language, f"q{number}", {}) for number, (text, language) in enumerate(pairs)]
    return some_of_each(records, PER_LANGUAGE, seed=0)
