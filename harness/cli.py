"""The command line: one small function per verb. Heavy rooms are imported when a verb needs them.

Exit codes: 0 done; 1 the run failed; 2 the input is wrong, every problem listed.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from harness.recipe import Recipe, load_recipe
from harness.runtime.errors import InputError, Problem, RunError, StoppedError
from harness.runtime.process import (
    configure_logging,
    is_main_process,
    refuse_file_in_the_way,
    refuse_foreign_content,
)

app = typer.Typer(
    name="harness",
    help="A small query encoder for a large embedding model's own index, and the proof of what it keeps.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

RecipePath = Annotated[Path, typer.Argument(metavar="RECIPE", help="A recipe, e.g. recipes/quickstart.yaml.")]
Set = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key of the recipe; may be repeated.")
]
Output = Annotated[
    Path | None, typer.Option("--output", metavar="DIR", help="The run's folder (default outputs/NAME).")
]


def _console() -> Any:
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=110)  # a log has no width of its own


def _load(recipe: Path, overrides: list[str] | None, output: Path | None) -> tuple[Recipe, Path]:
    from harness.pipeline.controller import default_output

    loaded = load_recipe(recipe, overrides or [])
    return loaded, output or default_output(loaded, recipe)


def _show_report(root: Path) -> None:
    from harness.evaluation.report import terminal_tables
    from harness.pipeline.folder import RunFolder
    from harness.runtime.process import read_json

    console = _console()
    for table in terminal_tables(read_json(RunFolder(root).results), console.width):
        console.print(table)
    for name in ("report.html", "report.md", "results.json"):
        console.print(f"{root / name}", highlight=False, soft_wrap=True)


@app.command()
def run(
    recipe: RecipePath,
    set_: Set = None,
    output: Output = None,
    first: Annotated[
        str | None, typer.Option("--from", metavar="STEP", help="Run this step and what depends on it again.")
    ] = None,
    last: Annotated[str | None, typer.Option("--to", metavar="STEP", help="Stop after this step.")] = None,
    print_: Annotated[bool, typer.Option("--print", help="Show each step's command and run nothing.")] = False,
) -> None:
    """Run a whole recipe; steps that are done already are left alone."""
    from harness.pipeline import controller

    loaded, root = _load(recipe, set_, output)
    if print_:
        for line in controller.commands(loaded, root / "recipe.resolved.yaml"):
            typer.echo(line)
        return
    folder, ran = controller.run_recipe(loaded, root, first=first, last=last)
    if not ran:
        typer.echo("Everything was done already; nothing ran.")
    if folder.results.exists() and last is None:
        _show_report(root)


@app.command()
def check(
    recipe: RecipePath,
    set_: Set = None,
    output: Output = None,
    full: Annotated[
        bool, typer.Option("--full", help="Read all lines of every file, not only the first million.")
    ] = False,
) -> None:
    """Validate a recipe and its data, and say what a run will do and cost."""
    from harness.pipeline.check import describe_run

    console = _console()
    loaded, root = _load(recipe, set_, output)
    parts, error = describe_run(loaded, full=full, output=root)
    for part in parts:
        console.print(part)
    if error:
        raise error


@app.command()
def search(
    root: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, e.g. outputs/quickstart.")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The query.")],
    k: Annotated[int, typer.Option("--k", min=1, max=1000, help="How many documents to show.")] = 10,
    language: Annotated[
        str | None, typer.Option("--language", help="The query's language, where a run searches within one.")
    ] = None,
) -> None:
    """Ask the student and the teacher the same thing on the teacher's index."""
    from rich.markup import escape
    from rich.table import Table

    from harness.pipeline.search import search_run

    answers = search_run(root, text, k, language)
    table = Table(title=escape(text if len(text) <= 200 else text[:199] + "…"), show_lines=False)
    table.add_column("#", justify="right")
    for answer in answers:
        table.add_column(f"{answer.system}\n{answer.encode_ms:.1f} ms + search {answer.search_ms:.1f} ms")
        table.add_column("score", justify="right")
    for place in range(max(len(answer.hits) for answer in answers)):
        cells = [str(place + 1)]
        for answer in answers:
            hit = answer.hits[place] if place < len(answer.hits) else ("", "", float("nan"))
            cells += [escape(hit[1]), f"{hit[2]:.3f}"]
        table.add_row(*cells)
    _console().print(table)


@app.command()
def verify(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="A deployed folder, e.g. export/student.")],
    index: Annotated[
        Path, typer.Option("--index", metavar="DIR", help="A run, a store of vectors, or export/index.")
    ],
    queries: Annotated[
        Path | None, typer.Option("--queries", metavar="FILE", help="Query texts (default: those of the run).")
    ] = None,
) -> None:
    """Hold every artefact of a deployed folder against its own weights, on this machine and this index."""
    from rich.table import Table

    from harness.pipeline.verify import verify as verify_folder

    found = verify_folder(folder, index, queries)
    table = Table(title=str(folder), title_style="", show_lines=False)
    for column in ("artefact", "queries", "least cosine", "mean cosine", "overlap@10", "length off by",
                   "of P@1 kept, plain paired bootstrap", ""):  # fmt: skip
        table.add_column(column, justify="left" if column in ("artefact", "") else "right")
    for verified in found:
        row = verified.parity["languages"].get("all", {})
        macro = verified.parity["recovery"].get("P@1", {}).get("macro", {})
        kept = "-" if macro.get("value") is None else f"{macro['value']:.4f}"
        if macro.get("low") is not None and macro.get("high") is not None:
            kept += f" \\[{macro['low']:.4f}, {macro['high']:.4f}]"  # no markup
        numbers = [*(row.get(key) for key in ("min_cosine", "mean_cosine", "overlap@10")), verified.parity.get("norm")]
        table.add_row(verified.artefact, f"{verified.parity['queries']:,}",
                      *("-" if number is None else f"{number:.6f}" for number in numbers), kept,
                      "passed" if verified.passed else "FAILED")  # fmt: skip
    _console().print(table)
    failed = [verified for verified in found if not verified.passed]
    if failed:
        reasons = [f"    {verified.artefact}: {reason}" for verified in failed for reason in verified.parity["reasons"]]
        raise RunError("\n".join(["not the student on this machine:", *reasons]))


@app.command("make-emoji")
def make_emoji(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="Where to write the BEIR folder.")],
    languages: Annotated[
        str | None, typer.Option("--languages", metavar="DE,EN,...", help="Some of the 14 (default: all).")
    ] = None,
) -> None:
    """Write the emoji data set: find an emoji, described in English, by its name in another language."""
    from harness.data.emoji import make_emoji as write

    refuse_foreign_content(folder, ("corpus.jsonl", "queries.jsonl", "qrels"))
    write(folder, [name.strip() for name in languages.split(",")] if languages else None)
    typer.echo(str(folder))


def _add_step_verb(verb: str, text: str) -> None:
    def command(
        recipe: RecipePath,
        set_: Set = None,
        output: Output = None,
        only: Annotated[str | None, typer.Option("--only", hidden=True)] = None,
    ) -> None:
        from harness.pipeline.controller import run_verb

        loaded, root = _load(recipe, set_, output)
        run_verb(loaded, root, verb, only=only)

    command.__doc__ = text
    app.command(verb)(command)


@app.command()
def embed(
    recipe: RecipePath,
    set_: Set = None,
    output: Output = None,
    update: Annotated[
        bool, typer.Option("--update", help="The documents changed: encode new and changed ones, train nothing.")
    ] = False,
    only: Annotated[str | None, typer.Option("--only", hidden=True)] = None,
) -> None:
    """Write the teacher's document vectors, query vectors and index. The steps before it must be done."""
    loaded, root = _load(recipe, set_, output)
    if not update:
        from harness.pipeline.controller import run_verb

        run_verb(loaded, root, "embed", only=only)
        return
    from harness.pipeline.update import update_documents

    told = update_documents(loaded, root)
    if told is None:
        typer.echo("No file has changed; there is nothing to update.")
        return
    for name, counts in told.items():
        typer.echo(f"{name}: " + ", ".join(f"{count:,} {what}" for what, count in counts.items()))
    typer.echo("`harness run RECIPE` evaluates on the new index.")


@app.command()
def evaluate(
    recipe: RecipePath,
    set_: Set = None,
    output: Output = None,
    trec: Annotated[
        Path | None, typer.Option("--trec", metavar="DIR", help="Also write TREC run files and qrels into a folder.")
    ] = None,
    only: Annotated[str | None, typer.Option("--only", hidden=True)] = None,
) -> None:
    """Search with every system and store what was found. The steps before it must be done."""
    from harness.pipeline.controller import run_verb

    loaded, root = _load(recipe, set_, output)
    if trec is not None:
        refuse_file_in_the_way(trec, f"--trec {trec}")
    run_verb(loaded, root, "evaluate", only=only)
    if trec is not None and is_main_process():
        from harness.pipeline.trec import write_trec

        for path in write_trec(root, trec):
            typer.echo(str(path))


@app.command()
def report(
    paths: Annotated[
        list[Path], typer.Argument(metavar="RECIPE", help="A recipe; with --compare two or more folders of runs.")
    ],
    set_: Set = None,
    output: Output = None,
    compare: Annotated[
        bool, typer.Option("--compare", help="Put runs side by side; --output DIR keeps it as a page and as Markdown.")
    ] = False,
    only: Annotated[str | None, typer.Option("--only", hidden=True)] = None,
) -> None:
    """Write results.json, report.md and report.html (the steps before it must be done), or compare runs."""
    if compare:
        _compare(paths, set_, output)
        return
    if len(paths) > 1:
        raise InputError(
            Problem("more than one recipe", where="report", got=", ".join(map(str, paths)), allowed="one recipe",
                    next="to compare runs: harness report --compare RUN RUN")
        )  # fmt: skip
    from harness.pipeline.controller import run_verb

    loaded, root = _load(paths[0], set_, output)
    run_verb(loaded, root, "report", only=only)
    if is_main_process():
        _show_report(root)


def _compare(runs: list[Path], overrides: list[str] | None, output: Path | None) -> None:
    from harness.evaluation.between import paired_between
    from harness.evaluation.report.compare import Comparison
    from harness.evaluation.report.compare_page import terminal_tables, write_comparison
    from harness.evaluation.report.runs import read_runs
    from harness.pipeline.manifest import vouched

    if overrides:
        raise InputError(Problem("--set changes a recipe, and --compare reads none", where="--set"))
    if output:
        refuse_file_in_the_way(output, f"--output {output}")
    told = Comparison(read_runs(runs, vouched), paired_between)
    console = _console()
    for table in terminal_tables(told, console.width):
        console.print(table)
    for path in write_comparison(told, output) if output else ():
        console.print(f"{path}", highlight=False, soft_wrap=True)


@app.command()
def pool(
    root: Annotated[Path, typer.Argument(metavar="RUN", help="The folder of a run, e.g. outputs/quickstart.")],
    output: Annotated[
        Path | None, typer.Option("--output", metavar="FILE", help="A new .jsonl or .tsv (default RUN/pool.jsonl).")
    ] = None,
    depth: Annotated[
        int | None, typer.Option("--depth", min=1, max=1000, help="How many hits of each system (default 10).")
    ] = None,
    on: Annotated[
        str | None, typer.Option("--on", metavar="SET", help="test, report or select (default: that of the tables).")
    ] = None,
    blind: Annotated[bool, typer.Option("--blind", help="Hide who found what, and shuffle.")] = False,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Of the shuffling (default 0).")] = None,
    labels: Annotated[
        Path | None, typer.Option("--labels", metavar="FILE", help="Read a pool back whose grades are filled in.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="With --labels: correct earlier labels that have other grades.")
    ] = False,
) -> None:
    """Write what was found and nobody has judged, for raters or a relevance model; or read their labels back."""
    from harness.pipeline.pool import label_run, pool_run

    if labels is not None:
        others = {"--output": output, "--depth": depth, "--on": on, "--blind": blind or None, "--seed": seed}
        if given := [name for name, value in others.items() if value is not None]:
            raise InputError(Problem("of a pool that is written, and --labels reads one back", where=", ".join(given),
                                     allowed="--replace", next="leave it out, or leave out --labels"))  # fmt: skip
        count, empty = label_run(root, labels, replacing=replace)
        typer.echo(f"{count:,} new{' or corrected' if replace else ''} labels; {empty:,} pairs have no grade yet.")
        typer.echo(f"`harness run {root / 'recipe.resolved.yaml'}` judges what was found anew, and encodes nothing.")
        return
    if replace:
        raise InputError(Problem("no labels to correct earlier ones by", where="--replace", next="add --labels FILE"))
    written = pool_run(root, output or root / "pool.jsonl", depth=10 if depth is None else depth, set_name=on,
                       blind=blind, seed=seed or 0)  # fmt: skip
    typer.echo(f"{written.path}: {written.pairs:,} pairs of {written.queries:,} queries of {written.set_name}, found "
               f"by {', '.join(written.systems)} and not judged.")  # fmt: skip


for _verb, _text in {
    "data": "Read, check, split and write the data.",
    "mine": "Find hard negatives: the index's top hits without the positives.",
    "teacher": "Stage 1: fine-tune the teacher.",
    "student": "Choose or cut the student, and bridge it to the teacher's dimension.",
    "align": "Stage 2: align the student to the teacher's query vectors.",
    "refine": "Stage 3: refine the student against the frozen documents.",
    "export": "Write what is deployed.",
    "bench": "Time the encoders, interleaved, on an idle machine.",
}.items():
    _add_step_verb(_verb, f"{_text} The steps before it must be done.")


_DISK_ERRORS = (28, 122, 27, 30, 5, 13, 1)  # no space, quota, too large, read-only, input/output error, no right to it


def main() -> None:
    """The entry point ``harness``: runs a verb and turns what goes wrong into an exit code and a message."""
    from harness.pipeline.stop import StopNow, until_the_end

    configure_logging()
    try:
        with until_the_end():
            app()  # exits by itself: 0, or 2 for a wrong flag
    except StopNow as stop:
        _fail(str(stop) if is_main_process() else "", StoppedError.exit_code, together=True)
    except InputError as error:
        count = len(error.problems)
        _fail(f"{count} problem{'s' if count > 1 else ''}\n\n{error}", 2)
    except RunError as error:
        # Of several processes that were asked to stop, one says so.
        together = isinstance(error, StoppedError)
        _fail("" if together and not is_main_process() else str(error), error.exit_code, together)
    except OSError as error:
        if error.errno not in _DISK_ERRORS:
            raise
        _fail(f"{error}\n    next: make room, or make it writable; the same command goes on from there", 1)


def _fail(message: str, code: int, together: bool = False) -> None:
    from harness.pipeline.launch import leave

    if message:
        typer.echo(f"harness: {message}", err=True)
    leave(code, together)
