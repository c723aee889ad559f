"""The report as Markdown, for a pull request: what text it holds can't become markup, a link or a mention."""

from __future__ import annotations

import html
import re

from harness.evaluation.report import costs, disagree, evidence, tables
from harness.evaluation.report.tables import Grid
from harness.evaluation.report.values import clean
from harness.evaluation.report.view import View

LONGEST = 60_000  # characters; GitHub takes 65,536 in a comment
_APART = "\N{ZERO WIDTH SPACE}"
# What GitHub knows addresses, people, issues and emoji by. It looks for them in what is shown, so that no escape helps;
# what comes before "@" is a word to it in ASCII alone, and P@1 is nobody.
_LINKING = re.compile(
    r":(?=//|[\w+-]+:)|www(?=\.)|(?<![0-9a-z_])@(?=\w)|@(?=[\w-]+\.\w)|#(?=\d)|gh-(?=\d)", re.IGNORECASE | re.ASCII
)


def unlinked(text: str) -> str:
    """``text``, looking the same, of which GitHub makes no link, mention, issue or emoji; it is still to be escaped."""
    return _LINKING.sub(lambda found: found[0] + _APART, clean(text))


def as_html(text: str) -> str:
    """``text`` so that HTML within Markdown shows it as it is.

    What closes mathematics has no space before it; such a dollar is written as GitHub's documentation asks for, a price
    ("5 $") as it is.
    """
    return re.sub(r"(?<! )\$", "<span>&#36;</span>", html.escape(unlinked(text), quote=False))


def escaped(text: str) -> str:
    """``text`` so that Markdown and the HTML within it show it as it is, in a table cell too."""
    return re.sub(r"([\\`*_|~]|(?<=\])[(\[])", r"\\\1", as_html(text))


def table(grid: Grid) -> str:
    """One table in GitHub's Markdown, its title and note around it."""
    rule = [":--" if column in grid.left else "--:" for column in range(len(grid.header))]
    lines = [[escaped(cell) for cell in grid.header], rule]
    for row in grid.rows:
        cells = [escaped(cell) for cell in row.cells]
        lines.append([f"**{cell}**" if cell else "" for cell in cells] if row.strong else cells)
    body = "\n".join("| " + " | ".join(line) + " |" for line in lines)
    return body + (f"\n\n{escaped(grid.note)}" if grid.note else "")


def _section(grid: Grid | None, folded: bool = False) -> str:
    if grid is None:
        return ""
    if folded:
        return f"<details><summary>{as_html(grid.title)}</summary>\n\n{table(grid)}\n\n</details>"
    return f"### {escaped(grid.title)}\n\n{table(grid)}"


def folded_tables(view: View) -> list[Grid | None]:
    """What a reader of a pull request opens where the first lines make him ask."""
    others = [metric for metric in (*view.metrics, *tables.AGREEMENT) if metric != view.lead]
    return [
        tables.recovery(view),
        *(evidence.claims(view, metric) for metric in view.metrics),
        evidence.ledger(view),
        evidence.slices(view),
        evidence.leakage(view),
        evidence.languages(view),
        evidence.bias(view),
        evidence.alike_tests(view),
        tables.gains(view),
        tables.by_language(view, view.lead),
        *(tables.by_language(view, metric) for metric in others),
        tables.recovery_of_all_metrics(view),
        tables.latency_by_language(view),
        costs.batches(view),
        costs.effort(view),
        evidence.outside(view),
        disagree.short_table(view),
        tables.parity(view),
        tables.hand_over(view),
        tables.systems(view),
        tables.sets(view),
    ]


def markdown(view: View) -> str:
    """The report: verdict, bars, warnings, the few tables that a decision rests on; all others are folded."""
    verdict = view.verdict
    question = f"Can {escaped(view.candidate)} ship?" if view.candidate else "Can it ship?"
    facts = "; ".join(f"{escaped(key)}: {escaped(text)}" for key, text in tables.provenance(view))
    told = [
        *evidence.claim_sentences(view),
        *evidence.alike(view),
        *evidence.leakage_note(view),
        *evidence.bias_note(view),
        *costs.effort_note(view),
        *tables.labels_note(view),
    ]
    parts = [
        f"## {escaped(view.name)}",
        f"**{question} {verdict.word}.** {escaped(verdict.sentence)} "
        f"Set: {escaped(view.set_label)}; reference: {escaped(view.reference)}.",
        "\n".join(f"- {escaped(note)}" for note in tables.verdict_notes(view)),
        "\n".join(f"> **Warning:** {escaped(text)}\n>" for text in view.warnings),
        _section(tables.bars(view)),
        escaped(tables.confidence_note(view)),
        _section(tables.macro(view)),
        _section(tables.cost(view)),
        "\n".join(f"- {escaped(text)}" for text in told),
    ]
    foot = f"<sub>{facts}</sub>" if facts else ""
    room = LONGEST - sum(len(part) + 2 for part in [*parts, foot])
    left_out = []
    for grid in folded_tables(view):
        section = _section(grid, folded=True)
        room -= len(section) + 2
        if grid is not None and room < 0:
            left_out.append(grid.title)
        else:
            parts.append(section)
    if left_out:
        parts.append(f"In report.html only, for their length: {escaped('; '.join(left_out))}.")
    return "\n\n".join(part for part in [*parts, foot] if part) + "\n"
