"""Runs side by side: what is compared, what is marked as incomparable, and what is refused."""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders.evaluations import per_query
from builders.results import example_results
from builders.rich_results import rich_results
from rich.console import Console
from typer.testing import CliRunner

from harness.cli import app
from harness.evaluation.between import paired_between
from harness.evaluation.report.compare import APART, Comparison
from harness.evaluation.report.compare_page import markdown, page, terminal_tables
from harness.evaluation.report.runs import read_runs
from harness.pipeline.folder import RunFolder
from harness.pipeline.manifest import Manifest
from harness.runtime.errors import InputError, StaleArtefactError

Tree = dict[str, Any]


def stored(folder: Path, results: Tree) -> Path:
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps(results), encoding="utf-8")
    return folder


def two(tmp_path: Path, change: Callable[[Tree], object] = lambda results: None) -> list[Path]:
    """The example, and the same as ``change`` leaves it."""
    first, second = example_results(), example_results()
    second["name"] = "second"
    change(second)
    return [stored(tmp_path / "a", first), stored(tmp_path / "b", second)]


def printed(told: Comparison, width: int = 200) -> str:
    console = Console(file=StringIO(), width=width, color_system=None)
    for table in terminal_tables(told, width):
        console.print(table)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_all_three_tell_the_differences_to_the_first(tmp_path: Path) -> None:
    def change(results: Tree) -> None:
        results["quality"]["student-refined"]["test"]["macro"]["P@1"] += 0.0214
        results["recovery"]["student-refined"]["test"]["de"]["P@1"] = {"value": 0.5, "low": 0.4, "high": 0.6}
        results["latency"]["student-refined"]["torch"]["all"]["p50_ms"] *= 0.5
        results["throughput"]["student-refined"]["torch"]["queries_per_second"] = 2374.0
        results["bars"][0] |= {"passed": False, "value": 0.41}

    told = Comparison(read_runs(two(tmp_path, change)))
    first = example_results()
    value = first["quality"]["student-refined"]["test"]["macro"]["P@1"]
    lower = 0.5 - first["recovery"]["student-refined"]["test"]["de"]["P@1"]["value"]
    for text in (page(told), markdown(told), printed(told)):
        assert f"{value + 0.0214:.3f} (+0.021)" in text
        assert f"0.500 [0.400, 0.600] ({lower:+.3f})" in text
        assert "2.52 (×0.50)" in text and "0.21 (×0.50)" in text  # milliseconds, and over the run's own reference
        assert "2,374 (×2.00)" in text
        assert "✗ 0.410" in text and "✓ 0.447" in text
        assert "Not yet" in text and APART not in text


@pytest.mark.parametrize(
    ("change", "where", "what"),
    [
        (lambda r: r["sets"]["test"].update(queries=9), "quality", "other queries in test (9, the first has 1,636)"),
        (lambda r: r["sets"]["test"].update(languages=["de"]), "recovery", "other languages in test (1, the first"),
        (lambda r: r.update(reference="teacher-base"), "recovery", "another reference (teacher-base, the first"),
        (lambda r: r["provenance"]["hardware"].update(cpu="Zuse 3"), "latency", "other cpu (Zuse 3"),
        (lambda r: r["conditions"].update(threads=64), "latency", "other threads (64, the first has 2)"),
        (lambda r: r["conditions"].update(device="cuda"), "latency", "other device (cuda"),
    ],
)
def test_what_cannot_be_compared_is_marked(
    change: Callable[[Tree], object], where: str, what: str, tmp_path: Path
) -> None:
    runs = read_runs(two(tmp_path, change))
    told = Comparison(runs)
    assert what in " ".join(runs[1].reasons(where))
    assert what in " ".join(told.cautions())
    tables = {"quality": told.quality(), "recovery": told.recovery(), "latency": told.cost()}
    for kind, grid in tables.items():
        assert grid is not None
        marked = [cell for row in grid.rows for cell in row.cells[2:] if cell.endswith(APART)]
        compared = [cell for row in grid.rows for cell in row.cells[2:] if cell.endswith(")")]
        assert bool(marked) == bool(runs[1].reasons(kind)) and bool(compared) != bool(marked), kind
    bars = told.bars()
    assert bars is not None
    about = {"recovery": "recovery", "worst": "recovery", "latency": "latency"}
    for row in bars.rows:
        kind = about.get(row.cells[0].split()[0], "quality")
        assert row.cells[2].endswith(APART) == bool(runs[1].reasons(kind)) and APART not in row.cells[1], row.cells
    assert what in page(told)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"encoder": "timed within the whole path"}, "another way of timing the encoder (timed within the whole path"),
        ({"k": 1000}, "other k (1,000, the first has 10)"),
        ({"searcher": "torch"}, "other searcher (torch, the first has faiss)"),
        ({"search_threads": 2}, "other search threads (2, the first has 1)"),
    ],
)
def test_milliseconds_of_other_timing_or_search_are_marked(change: Tree, what: str, tmp_path: Path) -> None:
    runs = [rich_results(), rich_results() | {"name": "second"}]
    for results in runs:
        results["conditions"] = {**results["conditions"], "k": 10, "searcher": "faiss", "search_threads": 1}
        results["conditions"].pop("encoder", None)
    runs[1]["conditions"] |= change
    folders = [stored(tmp_path / name, results) for name, results in zip("ab", runs, strict=True)]
    told = Comparison(read_runs(folders))
    (caution,) = [text for text in told.cautions() if text.startswith(APART)]
    assert what in caution and "in its latency: " in caution
    grid = told.cost()
    assert grid is not None
    for row in grid.rows:
        assert row.cells[3].endswith(APART) == (row.cells[1] != "queries/s" and row.cells[3] != "–"), row.cells
    if "encoder" in change:
        return
    for results in runs:  # encoders alone are compared: the search does not matter
        for by_engine in results["latency"].values():
            for by_scope in by_engine.values():
                by_scope["all"].pop("whole_p50_ms")
    folders = [stored(tmp_path / name, results) for name, results in zip("cd", runs, strict=True)]
    assert APART not in page(Comparison(read_runs(folders)))


def test_intervals_of_another_method_are_told(tmp_path: Path) -> None:
    folders = two(tmp_path, lambda r: r.update(statistics={**(r.get("statistics") or {}), "method": "another"}))
    (told,) = [text for text in Comparison(read_runs(folders)).cautions() if "method" in text]
    assert told.startswith("second: its own intervals come from another method than ")


def test_the_hash_of_a_set_decides_where_both_tell_it(tmp_path: Path) -> None:
    folders = two(tmp_path)
    told = [json.loads((folder / "results.json").read_text()) for folder in folders]
    assert "do not tell which data" in " ".join(Comparison(read_runs(folders)).cautions())
    for hashes, same in ((("ab12", "ab12"), True), (("ab12", "cd34"), False)):
        for folder, results, sha in zip(folders, told, hashes, strict=True):
            results["sets"]["test"]["sha256"] = sha
            (folder / "results.json").write_text(json.dumps(results))
        runs = read_runs(folders)
        assert runs[1].reasons("quality") == ([] if same else ["other data (cd34, the first has ab12)"])
        assert same == (Comparison(runs).cautions() == [])


def test_other_labels_are_no_other_data(tmp_path: Path) -> None:
    def judged(results: Tree) -> None:
        results["sets"]["test"] |= {"sha256": "ef56", "sha256_without_labels": "ab12"}
        results["labels"] = {"labels": 30, "files": [], "used": {"test": 30}}

    folders = two(tmp_path, judged)
    first = json.loads((folders[0] / "results.json").read_text())
    for sha, reason in (("ab12", "other labels on the same data (30 judge it, 0 the first)"),
                        ("cd34", "other data (ef56, the first has cd34)")):  # fmt: skip
        first["sets"]["test"]["sha256"] = sha
        (folders[0] / "results.json").write_text(json.dumps(first))
        for runs, where in ((read_runs(folders), reason), (read_runs(folders[::-1]), "")):
            told = runs[1].reasons("quality")
            assert told == runs[1].reasons("recovery") and len(told) == 1 and (told == [where] or not where)
            assert ("labels" in told[0]) == ("labels" in reason)


def test_edited_results_are_refused_by_name(tmp_path: Path) -> None:
    folders = two(tmp_path)
    (folders[1] / "report.md").write_text("read by people")
    for folder in folders:
        Manifest(RunFolder(folder)).record("report", {"report": "1"}, [], 1.0, [folder / "results.json"])
    run = partial(CliRunner().invoke, app)
    command = ["report", "--compare", *map(str, folders)]
    fine = run(command)
    assert fine.exit_code == 0 and "vouches" not in fine.output
    (folders[1] / "manifest.json").rename(tmp_path / "manifest.json")
    alone = run(command)
    assert alone.exit_code == 0 and "second: results.json without the manifest" in " ".join(alone.output.split())
    (tmp_path / "manifest.json").rename(folders[1] / "manifest.json")
    results = folders[1] / "results.json"
    results.write_text(results.read_text().replace("0.4", "0.9"))
    refused = run(command).exception
    assert isinstance(refused, StaleArtefactError) and str(results) in str(refused) and "sha256" in str(refused)
    assert str(folders[0]) not in str(refused)


def evaluated(folder: Path, results: Tree, chances: dict[str, float]) -> None:
    """Evaluations of 200 queries, and the results' macro as these have it."""
    for system, chance in chances.items():
        hit = (np.random.default_rng(5).random(200) < chance).astype(np.float64)  # the same luck for all
        found = per_query(["de", "en"] * 100, [i // 2 for i in range(200)], {"P@1": hit.tolist()})
        found.save(folder / "evaluations" / system / "test", {})
        macro = (hit[::2].mean() + hit[1::2].mean()) / 2
        results["quality"][system]["test"]["macro"]["P@1"] = float(macro)
    (folder / "results.json").write_text(json.dumps(results))


def test_differences_are_paired_where_both_runs_kept_every_query(tmp_path: Path) -> None:
    folders = two(tmp_path)
    for folder, chance in zip(folders, (0.4, 0.6), strict=True):
        evaluated(folder, json.loads((folder / "results.json").read_text()), {"student-refined": chance})
    runs = read_runs(folders)
    grid = Comparison(runs, paired_between).quality()
    assert grid is not None
    cell = grid.rows[0].cells[2]
    value, base = (run.view.quality("student-refined", "macro", "P@1") or 0.0 for run in reversed(runs))
    assert cell.startswith(f"{value:.3f} ({value - base:+.3f} [+0.") and not cell.endswith("?)")  # a clear gain
    with_interval = {row.cells[0] for row in grid.rows if "[" in row.cells[2]}
    assert with_interval <= {"P@1", "nDCG@10"} < {row.cells[0] for row in grid.rows}, "the others have none"
    assert grid.note == ("Macro, on test. In brackets: the difference to quickstart; that of P@1 and nDCG@10 with its "
                         "paired interval (95 % confidence), where both runs kept their evaluations. A question mark: "
                         "undecided.")  # fmt: skip
    same = Comparison([runs[0], replace(runs[0], name="copy", folder=tmp_path / "a")], paired_between)._difference(
        runs[0], "student-refined", "student-refined", "P@1", (base, base)
    )
    assert isinstance(same, dict) and same["same"], "nothing is in doubt between a run and its copy"
    copied = Path(shutil.copytree(folders[0], tmp_path / "copied"))
    copies = Comparison(read_runs([folders[0], copied]), paired_between).quality()
    assert copies is not None and copies.rows[0].cells[2] == f"{base:.3f} (the same in every query)"
    # Evaluations that the results were not made from tell nothing.
    results = json.loads((folders[1] / "results.json").read_text())
    results["quality"]["student-refined"]["test"]["macro"]["P@1"] += 0.01
    (folders[1] / "results.json").write_text(json.dumps(results))
    grid = Comparison(read_runs(folders), paired_between).quality()
    assert grid is not None and "[" not in grid.rows[0].cells[2]


def test_paired_intervals_have_the_confidence_of_the_first_run(tmp_path: Path) -> None:
    bounds: dict[float, list[float]] = {}
    for confidence in (0.9, 0.99):
        folders = two(tmp_path / str(confidence))
        for folder, chance, own in zip(folders, (0.4, 0.6), (confidence, 0.9), strict=True):
            results = json.loads((folder / "results.json").read_text())
            evaluated(folder, results | {"statistics": {"confidence": own}}, {"student-refined": chance})
        told = Comparison(read_runs(folders), paired_between)
        grid = told.quality()
        assert grid is not None and f"paired interval ({100 * confidence:g} % confidence)" in grid.note
        bounds[confidence] = [float(text) for text in re.findall(r"[-+]0\.\d+", grid.rows[0].cells[2])[1:]]
        other = "second: its own intervals are at 90 % confidence, the paired ones at 99 %, as quickstart's."
        assert [text for text in told.cautions() if "%" in text] == ([] if confidence == 0.9 else [other])
    assert bounds[0.99][0] < bounds[0.9][0] < bounds[0.9][1] < bounds[0.99][1]


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    folders = [stored(tmp_path / name, example_results()) for name in ("one/run", "two/run", "three/run")]
    assert [run.name for run in read_runs(folders)] == ["quickstart 1", "quickstart 2", "quickstart 3"]
    runs = read_runs([folders[0], stored(tmp_path / "other", example_results())])
    assert [run.name for run in runs] == ["run", "other"]


def test_the_set_is_the_foremost_that_all_have(tmp_path: Path) -> None:
    folders = [stored(tmp_path / "a", example_results()), stored(tmp_path / "b", example_results(set_name="report"))]
    assert {run.view.set for run in read_runs(folders)} == {"select"}


@pytest.mark.parametrize("width", [80, 110])
def test_a_terminal_loses_nothing_of_five_runs(width: int, tmp_path: Path) -> None:
    folders = two(tmp_path)
    for place, letter in enumerate("cde"):
        results = example_results() | {"name": f"quickstart-with-a-long-name-{letter}"}
        results["quality"]["student-refined"]["test"]["macro"]["P@1"] += place / 1000
        folders.append(stored(tmp_path / letter, results))
    told = Comparison(read_runs(folders))
    text = printed(told, width)
    assert max(map(len, text.splitlines())) <= width
    number_cells = [(grid.title, cell) for grid in told.grids() for row in grid.rows
                    for column, cell in enumerate(row.cells) if column not in grid.left]  # fmt: skip
    assert [pair for pair in number_cells if text.count(pair[1]) < number_cells.count(pair)] == []
    names = [cell for grid in told.grids() for row in grid.rows for cell in [row.cells[0]]]
    together = re.sub(r"\s+", " ", text)
    assert [name for name in names if name.split()[0] not in together] == []
    broken = re.findall(r"(.*) \(1 of \d\)", text)
    assert "Recovery of P@1" in broken and ("Quality of the systems in question" in broken or width > 80)


def test_what_is_no_run_is_refused_all_at_once(tmp_path: Path) -> None:
    good = stored(tmp_path / "good", example_results())
    (tmp_path / "empty").mkdir()
    bad = tmp_path / "bad"
    bad.mkdir()
    (bad / "results.json").write_text("{", encoding="utf-8")
    newer = stored(tmp_path / "newer", {"schema": 2})
    with pytest.raises(InputError) as caught:
        read_runs([good, tmp_path / "empty", bad, newer, good])
    told = str(caught.value)
    assert len(caught.value.problems) == 4
    for text in ("the same run twice", "empty", "no JSON", "schema 2"):
        assert text in told
    with pytest.raises(InputError, match="two or more"):
        read_runs([good])
    with pytest.raises(InputError, match="no set that all"):
        read_runs([good, stored(tmp_path / "none", {"schema": 1})])


def test_the_command_prints_and_writes_where_it_is_told(tmp_path: Path) -> None:
    folders = [str(folder) for folder in two(tmp_path)]
    answer = CliRunner().invoke(app, ["report", "--compare", *folders])
    assert answer.exit_code == 0 and "Quality of the systems in question" in answer.output
    assert {path.name for path in tmp_path.rglob("*")} == {"a", "b", "results.json"}  # nothing is written unasked
    answer = CliRunner().invoke(app, ["report", "--compare", *folders, "--output", str(tmp_path / "out")])
    assert answer.exit_code == 0
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"compare.html", "compare.md"}
    through = str(tmp_path / "a" / "results.json" / "deeper" / "still")
    for wrong in (["report", "--compare", *folders, "--set", "a=b"], ["report", *folders],
                  ["report", "--compare", *folders, "--output", through]):  # fmt: skip
        assert isinstance(CliRunner().invoke(app, wrong).exception, InputError)


def test_text_of_runs_cannot_become_markup(tmp_path: Path) -> None:
    nasty = "<script>alert(1)</script>"
    results = rich_results()
    results |= {"name": nasty}
    results["sets"]["test"]["sha256"] = nasty
    results["provenance"] |= {"commit": nasty, "hardware": {"cpu": nasty}}
    results["bars"][0]["what"] = nasty
    results["quality"][nasty] = copy.deepcopy(results["quality"]["teacher"])
    other = copy.deepcopy(results) | {"name": "other"}
    other["provenance"]["hardware"] = {"cpu": "x"}
    told = Comparison(read_runs([stored(tmp_path / "a", results), stored(tmp_path / "b", other)]))
    html, short = page(told), markdown(told)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert "<script" not in short


def test_the_hash_of_a_set_is_of_what_it_asks_and_of_which_documents() -> None:
    from harness.data.records import Dataset, Documents, Record
    from harness.evaluation.pooling import with_labels
    from harness.pipeline.work_report import set_hashes

    def dataset(
        text: str = "cat", document: str = "a cat", grade: float = 1.0, other: str = "x", within: bool = False,
        spoken: str = "en",
    ) -> Dataset:  # fmt: skip
        documents = Documents(ids=["d"], texts=[document], languages=[spoken], keys=[""])
        test = Record("q", text, "en", "g", {"d": grade})
        return Dataset(documents, {"test": [test], "train": [Record("t", other, "en", "h", {"d": 1.0})]},
                       unlabelled=[], search_within=within, sha256="")  # fmt: skip

    def named(found: Dataset, labels: dict[str, float] | None = None) -> str:
        judged = with_labels(found.splits["test"], {"q": labels or {}}, {"d": 0, "d1": 1, "d2": 2})
        return set_hashes(found, {"other": [Record("o", "", "en", "g", {})], "test": judged})["test"]

    same = named(dataset())
    assert same.startswith("55f2444f957f"), "runs that are stored stay comparable"
    assert set_hashes(dataset(), {"test": dataset().splits["test"]}) == {"test": same}, "of this set alone"
    assert same == named(dataset(other="y"))  # what was trained on is another matter
    assert same == named(dataset(spoken="de")), "that all documents are searched is all that counts"
    changed = (dataset(text="dog"), dataset(document="a dog"), dataset(grade=2.0), dataset(within=True),
               dataset(within=True, spoken="de"))  # fmt: skip
    labelled = [named(dataset(), labels) for labels in ({"d1": 0.0}, {"d1": 1.0}, {"d1": 2.0}, {"d2": 1.0})]
    assert len({same, *map(named, changed), *labelled}) == 10, "labels judge, too"
