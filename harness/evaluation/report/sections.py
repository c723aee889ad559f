"""What stands below the first screen: each section's markup, "" where there is nothing for it."""

from __future__ import annotations

from collections.abc import Callable

from harness.evaluation.report import costs, curves, disagree, evidence, plots, tables
from harness.evaluation.report.parts import figure, folded_table, panels, sentences, table
from harness.evaluation.report.view import View


def _kept(view: View) -> str:
    joint = (
        "The thin line to the left reaches the bound that holds for all languages at once. " if view.has_joint else ""
    )
    few = "Hollow and broken: too little data to tell. " if view.small else ""
    caption = (
        f"Recovery of {view.lead}: {view.candidate} divided by {view.reference}, with paired bootstrap intervals. "
        f"A hollow mark: the interval holds 1, so the two can't be told apart. {joint}{few}Diamonds: summaries; "
        "the bounds of the lowest language are each one-sided. "
        f"Dashed line: as good as the reference{'; dotted line: the bar' if plots.recovery_bar(view) else ''}."
    )
    told = [*evidence.claim_sentences(view), *evidence.small_note(view), *evidence.alike(view)]
    return (
        figure(view, plots.recovery, caption)
        + sentences([tables.language_note(view), *told])
        + table(evidence.claims(view, view.lead))
        + "".join(folded_table(evidence.claims(view, metric)) for metric in view.metrics if metric != view.lead)
        + folded_table(tables.recovery(view))
        + folded_table(tables.recovery_of_all_metrics(view))
        + folded_table(evidence.alike_tests(view))
    )


def _lost(view: View) -> str:
    ledger = (
        f"Macro {view.lead} from {view.reference} to what is served. Every bar runs from before a step to after it; "
        "the line over its end is the paired interval of the difference. A hollow bar: the interval holds 0, undecided."
    )
    slices = (
        f"Recovery of {view.lead} within slices of the queries. A hollow mark: the interval holds 1. "
        "Hollow and broken: too little data to tell."
    )
    return (
        figure(view, plots.ledger, ledger)
        + folded_table(evidence.ledger(view))
        + figure(view, plots.slices, slices)
        + folded_table(evidence.slices(view))
        + sentences(evidence.leakage_note(view))
        + folded_table(evidence.leakage(view))
    )


def _languages(view: View) -> str:
    caption = (
        f"The pool holds several languages: the share of {view.candidate}'s first hits that each document language "
        "takes (dot), beside its share of the relevant documents (hollow diamond)."
    )
    return (
        table(evidence.languages(view), titled=False)
        + figure(view, plots.bias, caption)
        + sentences(evidence.bias_note(view))
        + folded_table(evidence.bias(view))
    )


def _paid(view: View) -> str:
    of = "the whole path's latency (tokenise, encode, search)" if view.path_key else "the encoder's latency"
    quality = "An engine has its system's quality"
    quality += f", {plots.INT8[1]} that of {plots.INT8[0]}." if plots.INT8[0] in view.systems else "."
    front = plots.pareto(plots.timed_points(view))
    caption = (
        f"Macro {view.lead} against {of} for one query; up and to the left is better. A whisker runs from p50 to p99. "
        + ("The pale band joins the systems that no other beats in both. " if len(front) > 1 else "")
        + f"{quality} Systems that were not timed are left out. {plots.not_drawn(view)}"
    )
    effort = (
        "Per approximate index: recall against the same system's exact search as effort rises (dotted: within 1 %), "
        "and the queries per second that it leaves."
    )
    return (
        figure(view, plots.quality_and_latency, caption.strip())
        + table(tables.cost(view))
        + folded_table(tables.latency_by_language(view))
        + panels(curves.throughput(view), "Queries per second by batch size. All panels share one scale.", "two")
        + folded_table(costs.batches(view))
        + sentences(costs.effort_note(view))
        + panels(curves.effort(view), effort, "two")
        + table(costs.effort(view))
        + table(tables.parity(view))
        + table(tables.hand_over(view))
    )


def _differ(view: View) -> str:
    return disagree.cards(view)


def _stages(view: View) -> str:
    caption = (
        f"{view.lead} of the student after each stage. Dashed line: {view.reference}. All panels share one scale."
    )
    won = (
        f"Paired difference in {view.lead} of each stage over the one before it. "
        "A hollow mark: the interval holds 0, so it is undecided."
    )
    told = "" if plots.ledger_rows(view) else figure(view, plots.gains, won)  # the waterfall shows the same
    return panels(curves.stages(view), caption) + told + folded_table(tables.gains(view))


def _all(view: View) -> str:
    others = [metric for metric in (*view.metrics, *tables.AGREEMENT) if metric != view.lead]
    each = "".join(folded_table(tables.by_language(view, metric)) for metric in others)
    return table(tables.macro(view)) + table(tables.by_language(view, view.lead)) + each


def _outside(view: View) -> str:
    return table(evidence.outside(view), titled=False)


def _training(view: View) -> str:
    caption = "The metric that checkpoints are chosen by, and the loss, by step. " + tables.training_note(view)
    return panels(curves.training(view), caption.strip(), "large")


def _about(view: View) -> str:
    return table(tables.systems(view)) + table(tables.sets(view)) + sentences(tables.labels_note(view))


SECTIONS: tuple[tuple[str, str, str, Callable[[View], str]], ...] = (
    ("kept", "What is kept", "How much of the reference's precision the student keeps, language by language.", _kept),
    ("cost", "What it costs", "Quality beside the time that one query takes.", _paid),
    ("lost", "Where it is lost", "Step by step, and in which queries.", _lost),
    ("languages", "Languages", "What a language brings along, and what is found in which.", _languages),
    ("differ", "Where the two differ most", "The queries with the largest difference, side by side.", _differ),
    ("stages", "What each stage did", "From the untrained student to the refined one.", _stages),
    ("outside", "Outside sets", "The student on queries, the reference on documents.", _outside),
    ("quality", "All metrics", "Every system in every language.", _all),
    ("training", "How training went", "A curve that still rises at its end was stopped early.", _training),
    ("about", "Systems and sets", "What was compared, and on what.", _about),
)
