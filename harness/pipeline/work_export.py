"""What the step ``export`` and those that come with it do: all that is deployed, and the proof that it is right."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from harness.encoders.chain import read_chain
from harness.encoders.sources import resolve_model
from harness.engines.deployed import MODEL_FILES, ONNX, PARITY, read_onnx_manifest, write_parity
from harness.export.card import Base, Deployed, license_of, model_card
from harness.export.index import export_index
from harness.export.opening import open_deployed
from harness.export.pair import export_pair
from harness.export.parity import (
    Encode,
    Questions,
    bounds_of,
    measure_parity,
    one_line,
    same_documents,
    some_of_each,
)
from harness.export.student import export_student
from harness.pipeline.work_evaluation import system_folder
from harness.runtime.errors import InputError, RunError
from harness.runtime.process import atomic_file, logger, read_json, remove_folder, replace_folder, write_json
from harness.vectors.space import require_same_space

if TYPE_CHECKING:
    from harness.data.records import Record
    from harness.pipeline.context import Run
    from harness.recipe import ExportSettings

ASKED = 250  # queries of each language that an artefact is held against the student on
DOCUMENTS = 200  # that a pair encodes again
CALIBRATION = 64  # training queries of each language that int8-static measures ranges on


def do_export(run: Run) -> list[Path]:
    """Copy the student to ``export/student``; it carries prompts, pooling, projection, normalisation and its space.

    Raises:
        RunError: the copy, opened as others will open it, is not the student: nothing is exported.
    """
    target, proof = run.folder.export / "student", run.folder.proof("student")
    with _scratch(run) as place:
        export_student(deployed(run), place / "student")
        opened = open_deployed(place / "student")
        told = {"student": {"artefact": f"folder ({opened.reader})", **_hold(run, opened.queries)}}
        _log(told)
        write_json(proof, told)
        if reasons := told["student"]["reasons"]:
            remove_folder(target)
            _remove_cards(run)
            what = f"the student's folder, opened by {opened.reader}, is not the student, and is not exported"
            raise RunError("\n    ".join([what, *reasons, f"figures: {proof}"]))
        replace_folder(place / "student", target)
    return [target, proof]


def do_pair(run: Run) -> list[Path]:
    """Teacher and student as one sentence-transformers model, if its queries are the student's and its documents those
    of the frozen vectors."""
    target, proof = run.folder.export / "pair", run.folder.proof("pair")
    with _scratch(run) as place:
        export_pair(run.folder.teacher, deployed(run), place / "pair")
        opened = open_deployed(place / "pair")
        told = {
            "pair": {"artefact": f"pair, queries ({opened.reader})", **_hold(run, opened.queries)},
            "pair documents": {"artefact": f"pair, documents ({opened.reader})",
                               **hold_documents(run, opened.documents)},
        }  # fmt: skip
        passed = all(row["passed"] for row in told.values())
        if not passed:  # one folder, one fate
            for row in told.values():
                row["reasons"] = row["reasons"] or ["the pair's other tower failed"]
                row["passed"] = False
        _log(told)
        if passed:
            replace_folder(place / "pair", target)
        else:
            remove_folder(target)
            _remove_cards(run)
    write_json(proof, told)
    return [target, proof]


def do_index(run: Run) -> list[Path]:
    """The frozen vectors in the forms that are asked for, and what the approximate ones lose on real queries."""
    store, student = run.store("documents"), deployed(run)
    require_same_space(run.space(student), store.space, str(student), "the document vectors")
    query_QD = _encoded(run, student, asked(run))
    told = export_index(store, run.folder.export / "index", _settings(run).index, query_QD)
    for name, cost in told["cost"].items():
        logger.info("export: %s finds %.3f of the exact first ten, %.3f of them among its first hundred; "
                    "%d bytes a vector", name, cost["recall@10"], cost["recall@10_of_100"],
                    cost["bytes_per_vector"])  # fmt: skip
    return [run.folder.export / "index"]


def do_onnx(run: Run) -> list[Path]:
    """ONNX files beside the student's weights: only those that answer as the student in memory does.

    They are made and compared in a scratch folder, so that ``export/`` never holds one that is not proven.
    """
    from harness.export.onnx import export_onnx, remove_onnx
    from harness.export.triton import write_triton

    settings, target = _settings(run), run.folder.export / "student"
    encoder = run.open(target)
    with _scratch(run) as place:
        scratch = place / "student"
        shutil.copytree(target, scratch, copy_function=_link, ignore=lambda _, names: {ONNX} & set(names))
        export_onnx(encoder, scratch, settings.onnx, calibration=_calibration(run))
        told = compare(run, scratch, encoder.encode(asked_texts(run), side="query"))
        _log(told)
        if failed := [name for name in settings.onnx if not told[name]["passed"]]:
            remove_onnx(scratch, failed)
            _remove_cards(run)
        if (scratch / ONNX).exists():
            write_parity(scratch, told)
            replace_folder(scratch / ONNX, target / ONNX)
        else:
            remove_folder(target / ONNX)
    write_json(run.folder.proof("onnx"), told)
    (run.folder.export / PARITY).unlink(missing_ok=True)  # of an earlier version
    if settings.triton and (target / ONNX).exists():
        write_triton(target, run.folder.triton)
    else:
        remove_folder(run.folder.triton)
    return [target / ONNX, run.folder.proof("onnx"), run.folder.triton]


def compare(run: Run, folder: Path, student_QD: np.ndarray) -> dict[str, Any]:
    """Each ONNX file of a folder held against the student's own vectors of the queries ``asked``."""
    from harness.engines.onnx_runtime import OnnxEngine

    return {
        precision: {"artefact": f"onnx {precision}", **_hold(
            run, OnnxEngine(folder, precision=precision, threads=run.recipe.launch.threads).encode, student_QD,
            precision,
        )}
        for precision in _settings(run).onnx
    }  # fmt: skip


def _hold(run: Run, artefact: Encode, student_QD: np.ndarray | None = None, precision: str = "fp32") -> dict[str, Any]:
    """An artefact's queries against the student's own; without ``student_QD`` that encodes them."""
    dataset, evaluate = run.dataset, run.recipe.evaluate
    if student_QD is None:
        student_QD = _encoded(run, deployed(run), asked(run))
    questions = Questions(asked(run), dataset.documents, run.frozen_index(), dataset.search_within)
    return measure_parity(
        artefact, student_QD, questions, bounds_of(precision, _settings(run).parity), resamples=evaluate.resamples,
        confidence=evaluate.confidence, seed=run.recipe.seed,
    )  # fmt: skip


def hold_documents(run: Run, artefact: Encode) -> dict[str, Any]:
    """Some documents, encoded again, against their frozen vectors."""
    documents, store = run.dataset.documents, run.store("documents")
    rows = np.random.default_rng(run.recipe.seed).permutation(len(documents))[:DOCUMENTS].tolist()
    vector_ND = store.vectors(store.rows_of([documents.ids[row] for row in rows]))
    return same_documents(artefact, [documents.texts[row] for row in rows], vector_ND)


def _log(told: dict[str, Any]) -> None:
    for row in told.values():
        fate = "is the student" if row["passed"] else "is NOT exported"
        logger.info("export: %s %s (%s)", row["artefact"], fate, one_line(row))


@contextlib.contextmanager
def _scratch(run: Run) -> Iterator[Path]:
    """Where artefacts are made and held against the student: ``export/`` never holds one that is not proven."""
    with tempfile.TemporaryDirectory(prefix=".export.", suffix=".tmp", dir=run.folder.root) as place:
        yield Path(place)


def asked(run: Run) -> list[Record]:
    """The queries that artefacts are held against the student on: nothing is ever chosen on them."""
    splits = run.dataset.splits
    return some_of_each(splits.get("report") or splits.get("test") or splits["select"], ASKED, run.recipe.seed)


def asked_texts(run: Run) -> list[str]:
    """The texts of ``asked``."""
    return [record.text for record in asked(run)]


def deployed(run: Run) -> Path:
    """The folder of the student that the recipe deploys."""
    folder = system_folder(run, _settings(run).system)
    assert folder is not None, "a student is exported"
    return folder


def _settings(run: Run) -> ExportSettings:
    assert run.recipe.export is not None, "planned only with the section"
    return run.recipe.export


def _encoded(run: Run, folder: Path, records: list[Record]) -> np.ndarray:
    return run.open(folder).encode([record.text for record in records], side="query")


def _calibration(run: Run) -> list[str]:
    """Training queries, some of each language; without a train split, those that artefacts are compared on."""
    records = run.dataset.splits.get("train") or asked(run)
    return [record.text for record in some_of_each(records, CALIBRATION, run.recipe.seed)]


def _link(source: str, target: str) -> None:
    """A second name for a file that is only read; a copy where the disk knows no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


# ------------------------------------------------------------------------------------------------ what is told of it


def with_exports(run: Run, results: dict[str, Any]) -> dict[str, Any]:
    """results.json with what was held against the student, and a warning for each artefact that is not deployed."""
    settings, export = run.recipe.export, run.folder.export
    if settings:
        made = ["student", *(["pair"] if settings.pair else []), *(["onnx"] if settings.onnx else [])]
        results["parity"] = {name: row for one in made for name, row in read_json(run.folder.proof(one)).items()}
        results["warnings"] += [
            f"{row['artefact']} is not exported: {'; '.join(row['reasons'])}"
            for row in results["parity"].values() if not row["passed"]
        ]  # fmt: skip
    if settings and settings.index:
        told = read_json(export / "index" / "manifest.json")
        results["hand_over"] = {key: told[key] for key in ("rows", "dimension", "files", "cost")}
    return results


def do_card(run: Run, results: dict[str, Any]) -> list[Path]:
    """The model card: beside all that is exported, and in the student's folder, which may go its own way.

    The report step writes it, for it alone has every number; a student that is exported anew comes without a card,
    and so the report is written again.
    """
    if run.recipe.export is None:
        return []
    text = model_card(results, _described(run))
    cards = _cards(run)
    for card in cards:
        with atomic_file(card, "w") as stream:
            stream.write(text)
    return cards


def _cards(run: Run) -> list[Path]:
    return [run.folder.export / "README.md", run.folder.export / "student" / "README.md"]


def _remove_cards(run: Run) -> None:
    """A card of an earlier export would offer what is left out now, until the report step writes it anew."""
    for card in _cards(run):
        card.unlink(missing_ok=True)


def _described(run: Run) -> Deployed:
    recipe, settings, export = run.recipe, _settings(run), run.folder.export
    chain = read_chain(export / "student")
    own = None if recipe.student.model == "teacher" else recipe.student.model
    names = {"teacher": recipe.teacher.model, "student": own}
    revisions = {"teacher": recipe.teacher.revision, "student": recipe.student.revision}
    bases = [Base(Path(name).resolve().name if Path(name).is_dir() else name, role, _license(name, revisions[role]))
             for role, name in names.items() if name]  # fmt: skip
    if not bases:
        bases = [Base("vectors from files", "teacher")]
    files = read_onnx_manifest(export / "student")["files"] if (export / "student" / ONNX).is_dir() else {}
    index = read_json(export / "index" / "manifest.json") if settings.index else None
    space = run.space(export / "student")
    return Deployed(
        system=settings.system, bases=bases, query_prompt=chain.prompts["query"], max_length=chain.max_length or 512,
        dimension=space.dimension, data=_data_lines(run), onnx={name: MODEL_FILES[name] for name in files},
        pair=settings.pair and (export / "pair" / "modules.json").is_file(), index=index,
    )  # fmt: skip


def _license(model: str, revision: str | None) -> str | None:
    try:
        return license_of(model, resolve_model(model, revision, weights=False))
    except InputError:  # it was here when the run began; a card can do without
        return None


def _data_lines(run: Run) -> list[str]:
    """What the run trained on, without the paths of this machine."""
    data, dataset = run.recipe.data, run.dataset
    paths = data.path if isinstance(data.path, list) else [data.path] if data.path else []
    name = data.dataset or ", ".join(Path(path).name for path in paths) or data.source
    train = dataset.splits.get("train", [])
    languages = sorted({record.language for record in train})
    lines = [f"{name} ({data.source}): {len(train):,} queries in {', '.join(languages) or 'no language'}, "
             f"{len(dataset.documents):,} documents"]  # fmt: skip
    if dataset.unlabelled:
        lines.append(f"{len(dataset.unlabelled):,} queries without judgments")
    return lines + [f"the stream {name}" for name in data.streams]
