"""Tables and sentences behind the verdict: claims, ledger, slices, leakage, languages, bias, outside sets."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from harness.evaluation.report.tables import SCOPES, Grid, Row, grid
from harness.evaluation.report.values import (
    MISSING,
    Interval,
    branch,
    clean,
    count,
    decimals,
    described,
    dig,
    in_order,
    items,
    listed,
    number,
    percent,
    probability,
    whole_percent,
)
from harness.evaluation.report.view import METRICS, SYSTEMS, Status, View

READ = {"train": "the training queries", "align": "what the alignment read", "streams": "the logs that were trained on",
        "select": "select"}  # fmt: skip
WORD_FOR_WORD = (
    "Word for word, case and spaces aside; one query may occur in several. The alignment may read documents too. On "
    "select nothing is trained: checkpoints are chosen on it."
)
CLAIMED: dict[str, Status] = {"shown": "reached", "not shown": "missed", "undecided": "undecided"}
CLAIM_MARKS = {"shown": "✓ shown", "not shown": "✗ not shown", "undecided": "? undecided"}


# ------------------------------------------------------------------------------------------------------- claims


def _claim_scope(test: Mapping[str, Any]) -> str:
    scope = clean(test.get("scope"))
    return SCOPES.get(scope, scope or "(none)")


def claims(view: View, metric: str) -> Grid | None:
    """Whether the candidate loses less than the margin: one row a scope, the summaries first."""
    found = [test for test in view.claims if test.get("metric") == metric]
    scopes = in_order([clean(test.get("scope")) for test in found], tuple(SCOPES))
    found.sort(key=lambda test: scopes.index(clean(test.get("scope"))))
    rows = []
    for test in found:
        verdict = clean(test.get("verdict"))
        cells = [_claim_scope(test), CLAIM_MARKS.get(verdict, clean(verdict) or MISSING), decimals(test.get("value")),
                 decimals(test.get("low")), probability(test.get("p")), probability(test.get("p_adjusted")),
                 count(test.get("queries"))]  # fmt: skip
        rows.append(Row(cells, clean(test.get("scope")) in SCOPES, CLAIMED.get(verdict)))
    margins = list(dict.fromkeys(whole_percent(test.get("margin")) for test in found))
    header = ["scope", "verdict", "recovery", "lower bound", "p", "p (Holm)", "queries"]
    note = (
        "Shown: the one-sided lower bound of the ratio lies above 1 less the margin. All languages at once: only if "
        "each holds. Single languages are corrected for their number (Holm). "
    )
    reasons: dict[str, list[str]] = {}
    for test in found:
        if test.get("why") and test.get("scope") != "all languages":
            reasons.setdefault(clean(test["why"]), []).append(_claim_scope(test))
    told = "; ".join(f"{listed(scopes)}: {why}" for why, scopes in reasons.items())
    note += f"Why not: {told}." if told else "Undecided: too few groups of queries."
    title = f"Does {clean(view.candidate)} lose less than {' or '.join(margins)} of {clean(metric)}?"
    return grid(title, header, rows, note, left=(0, 1))


def claim_sentences(view: View) -> list[str]:
    """The claims of the metric in front, as one says them."""
    found: dict[str, list[str]] = {}
    margin = MISSING
    for test in view.claims:
        if test.get("metric") == view.lead:
            found.setdefault(clean(test.get("verdict")), []).append(_claim_scope(test))
            margin = whole_percent(test.get("margin"))
    head = f"That {clean(view.candidate)} loses less than {margin} of {clean(view.lead)}"
    words = {"shown": "is shown for", "not shown": "is not shown for",
             "undecided": "can't be told for" if any(test.get("why") for test in view.claims) else
             "can't be told, for want of queries, for"}  # fmt: skip
    parts = [f"{text} {listed(found[verdict])}" for verdict, text in words.items() if verdict in found]
    return [f"{head} {'; '.join(parts)}."] if parts else []


def small_note(view: View) -> list[str]:
    """Which languages can't be told: too small ones, and those in which the reference finds nothing."""
    named = [f"{lang} ({count(view.queries(lang))} queries)" for lang in view.small]
    told = [f"Too small to tell, so undecided: {listed(named)}."] if named else []
    if view.empty:
        told.append(f"{clean(view.reference)} finds nothing in {listed(view.empty)}, so undecided.")
    return told


# ------------------------------------------------------------------------------------------------------- alike


def alike(view: View) -> list[str]:
    """Whether compression treats languages alike: a sentence for the metric in front, numbers in it."""
    told = branch(view.results, "alike", view.candidate, view.set, view.lead)
    if not told:
        return []
    spread = Interval.of(told.get("sd_recovery"))
    parts = []
    chance = {words: number(dig(told, key, "p")) for key, words in (("permutation", "for what is lost"),
              ("permutation_of_recovery", "for the share that is kept"))}  # fmt: skip
    known = [f"p = {probability(p)} {words}" for words, p in chance.items() if p is not None]
    if known:
        many = number(dig(told, "permutation", "permutations"))
        of = f" in {count(many)} permutations" if many is not None else ""
        parts.append(
            f"with languages relabelled at random{of}, as large a difference turns up with {' and '.join(known)}"
        )
    if spread.value is not None:
        parts.append(f"recovery differs between languages by a standard deviation of {spread.text()}")
    parted = {key: percent(dig(told, "variance", key)) for key in ("language", "slice", "rest")}
    known = [f"{key} {text}" for key, text in parted.items() if text != MISSING]
    if known:
        parts.append(f"of the variance of per-query differences: {', '.join(known)}" + _left_out(told))
    head = f"Are languages treated alike ({clean(view.lead)})? {clean(told.get('verdict') or 'Not told').capitalize()}"
    note = clean(told.get("note") or "")
    return [
        head + (": " if parts else "") + "; ".join(parts) + "." + (f" {note[0].upper()}{note[1:]}." if note else "")
    ]


def _left_out(told: Mapping[str, Any]) -> str:
    """Which slices have no part in the split of the variance, and why."""
    named = [f"{clean(name)}, {clean(why)}" for name, why in branch(told, "variance", "left_out").items()]
    return f" (left out: {'; '.join(named)})" if named else ""


def alike_tests(view: View) -> Grid | None:
    """The same for every metric, with the rank tests where the set is parallel."""
    rows = []
    for metric, told in branch(view.results, "alike", view.candidate, view.set).items():
        kinds = ("permutation_of_recovery", "permutation", "friedman", "kruskal")
        p = [probability(dig(told, test, "p")) for test in kinds]
        spread = Interval.of(dig(told, "sd_recovery")).text()
        langs = dig(told, "languages")
        many = count(len(langs) if isinstance(langs, (list, tuple)) else langs)
        rows.append(Row([clean(metric), many, count(dig(told, "queries")), *p, spread,
                         clean(dig(told, "verdict") or MISSING)]))  # fmt: skip
    header = ["metric", "languages", "queries", "p of the share kept", "p of what is lost", "Friedman p",
              "Kruskal-Wallis p", "deviation of recovery", "verdict"]  # fmt: skip
    note = (
        "The first two p are by permutation. The verdict rests on that of the share that is kept; where only that of "
        "what is lost is small, it is: not alike in points. Friedman: which language loses more often, within groups "
        "that hold every language. Kruskal-Wallis, where these are too few: whether a group's mean difference tends "
        "to be larger in one language."
    )
    return grid("Treated alike, by metric", header, rows, note, left=(0, 8))


# ------------------------------------------------------------------------------------------------------- ledger


def _steps(view: View) -> list[str]:
    rows = [row for row in items(view.results.get("ledger"))
            if row.get("set") == view.set and row.get("metric") == view.lead]  # fmt: skip
    return list(dict.fromkeys(clean(row.get("step")) for row in rows))


def ledger(view: View) -> Grid | None:
    """What every step cost or won: a row per language and slice, a column per step."""
    steps = _steps(view)
    rows = [row for row in items(view.results.get("ledger"))
            if row.get("set") == view.set and row.get("metric") == view.lead]  # fmt: skip
    scopes = in_order([clean(row.get("scope")) for row in rows], ("macro", *view.languages))
    cells: dict[tuple[str, str], str] = {}
    for row in rows:
        doubt = " ?" if row.get("verdict") == "undecided" else ""
        cells[clean(row.get("scope")), clean(row.get("step"))] = Interval.of(row, "difference").text(sign=True) + doubt
    found = [Row([clean(scope) or "(none)", *(cells.get((scope, step), MISSING) for step in steps)], scope == "macro")
             for scope in scopes]  # fmt: skip
    title = f"Gap ledger: {view.lead} that each step cost or won, on {view.set_label}"
    note = (
        "Paired differences, after less before. A question mark: the interval holds 0, so the step is undecided there."
    )
    if any(" + " in step for step in steps):
        note += " Steps joined by a plus are told together: what lies between them was not evaluated."
    branches: dict[str, dict[str, None]] = {}  # by the system that stands before them
    for row in rows:
        if row.get("branch"):
            before = clean(([*(row.get("systems") or []), "", ""])[1]) or "the exported student"
            branches.setdefault(before, {})[clean(row.get("step"))] = None
    if branches:
        beside = "; ".join(f"{listed(list(steps))}: beside {before}" for before, steps in branches.items())
        note += f" {beside}; no step of the chain and no part of its sum."
    return grid(title, ["scope", *map(clean, steps)], found, note)


# ------------------------------------------------------------------------------------------------ slices, leakage


def slices(view: View) -> Grid | None:
    """Every slice of every value: the reference, the candidate, and what is kept."""
    rows = []
    for name, values in branch(view.results, "slices", view.candidate, view.set).items():
        for value, row in branch({"": values}, "").items():
            metric = {key: decimals(dig(row, key, view.lead)) for key in ("reference", "system")}
            doubt = "? undecided" if dig(row, "undecided") is True else ""
            rows.append(Row([f"{clean(name)}: {clean(value) or '(none)'}", count(dig(row, "queries")),
                             count(dig(row, "groups")), *metric.values(),
                             Interval.of(dig(row, "recovery", view.lead)).text(mark=view.mark), doubt]))  # fmt: skip
    header = ["slice", "queries", "groups", clean(view.reference), clean(view.candidate), "recovery", ""]
    return grid(f"Slices: {view.lead} on {view.set_label}", header, rows, left=(0, 6))


def leakage(view: View) -> Grid | None:
    """How many queries of every set occur in other texts that the run read, and in which."""
    where = list(dict.fromkeys(k for told in branch(view.results, "leakage").values() for k in branch(told, "seen")))
    where = [key for key in where if key != "any"]
    rows = []
    for name, told in branch(view.results, "leakage").items():
        seen = branch(told, "seen")
        rows.append(Row([clean(name), count(dig(told, "queries")), *(count(seen.get(key)) for key in where),
                         count(seen.get("any")), percent(dig(told, "share"))], name == view.set))  # fmt: skip
    header = ["set", "queries", *(f"in {READ.get(key, clean(key))}" for key in where), "in any", "share"]
    return grid("Leakage: evaluation queries that occur in other texts of the run", header, rows, WORD_FOR_WORD)


def leakage_note(view: View) -> list[str]:
    """Leakage of the set in front, and what is kept on queries that were never seen."""
    told = branch(view.results, "leakage", view.set)
    share = number(told.get("share"))
    if share is None:
        return []
    unseen = Interval.of(dig(view.results, "slices", view.candidate, view.set, "seen", "no", "recovery", view.lead))
    kept = (
        f" On the others, {clean(view.candidate)} keeps {unseen.text()} of {clean(view.lead)}."
        if unseen.value is not None
        else ""
    )
    seen = {key: value for key, n in branch(told, "seen").items() if (value := number(n)) is not None}
    together = seen.pop("any", None)
    only_chosen = {"select": " (chosen on, not trained on)"}
    places = [f"{count(value)} in {READ.get(key, clean(key))}{only_chosen.get(key, '')}" for key, value in seen.items()]
    listing = f": {', '.join(places)}; in any of them {count(together)} ({percent(share)})" if places else ""
    of = f"the {count(told.get('queries'))} queries of {clean(view.set)}"
    return [f"Of {of}, so many occur word for word in other texts of the run{listing or ': ' + percent(share)}.{kept}"]


# ------------------------------------------------------------------------------------------- languages and bias


def languages(view: View) -> Grid | None:
    """What may explain a language's recovery, beside it."""
    told = branch(view.results, "languages", view.set)
    rows = []
    for lang in in_order(told, tuple(view.languages)):
        row = branch(told, lang)
        kept = number(dig(row, "recovery", view.candidate))
        kept = view.recovery(view.candidate, lang, view.lead).value if kept is None else kept
        small = lang in view.small
        rows.append(Row([clean(lang) or "(none)", clean(row.get("script") or MISSING), count(view.queries(lang)),
                         decimals(row.get("tokens_per_query"), 1), percent(row.get("unknown_share")),
                         percent(row.get("train_share")), decimals(dig(row, "cosine", view.candidate)),
                         decimals(kept) + (" ?" if small else "")], lang == view.worst_language))  # fmt: skip
    header = ["language", "script", "queries", "tokens per query", "unknown tokens", "share of training",
              f"cosine with {clean(view.reference)}", f"recovery of {clean(view.lead)}"]  # fmt: skip
    note = "A question mark: too small to tell." if view.small else ""
    return grid("Languages", header, rows, note, left=(0, 1))


def bias(view: View) -> Grid | None:
    """Per document language: what each system finds beside what is relevant."""
    told = {name: branch(sets, view.set, "documents") for name, sets in branch(view.results, "bias").items()}
    told = {name: told[name] for name in in_order([n for n, rows in told.items() if rows], SYSTEMS)}
    langs = list(dict.fromkeys(lang for rows in told.values() for lang in rows))
    rows = []
    for lang in langs:
        first: Any = next(iter(rows_of[lang] for rows_of in told.values() if lang in rows_of), {})
        rows.append(Row([clean(lang) or "(none)", percent(dig(first, "share_of_pool")),
                         percent(dig(first, "share_of_relevant")),
                         *(percent(dig(rows_of, lang, "share_of_top")) for rows_of in told.values())]))  # fmt: skip
    header = ["document language", "of the pool", "of the relevant", *(f"of the first hits, {clean(n)}" for n in told)]
    return grid("Which languages are found", header, rows)


def bias_note(view: View) -> list[str]:
    """How much more of its own language and of English a query brings up than is relevant, and the ranks' variance."""
    told = branch(view.results, "bias", view.candidate, view.set)
    theirs = clean(view.reference)
    found = []
    for key, words in (("own_language", "documents of the query's own language"), ("english", "English documents")):
        part = branch(told, key)
        lean, beside = number(part.get("inclination")), number(part.get("reference"))
        if lean is not None:
            than = f" ({theirs} {100 * beside:+.1f}{_added(part)})" if beside is not None else ""
            found.append(f"{words} take {100 * lean:+.1f} points more of the first hits than of the relevant{than}")
    variance = branch(told, "rank_variance")
    own, beside = number(variance.get("value")), number(variance.get("reference"))
    if own is not None:
        than = f"; {theirs} {math.sqrt(beside):.1f}" if beside is not None else ""
        places = f"{math.sqrt(own):.1f} places (standard deviation{than})"
        found.append(f"the rank of a document differs by {places} between the languages that ask for it")
    if isinstance(note := told.get("note"), str):
        found.append(clean(note))
    return [f"{clean(view.candidate)}: {'; '.join(found)}."] if found else []


def _added(part: Mapping[str, Any]) -> str:
    """How many points a system adds to the reference's, with their interval."""
    value, low, high = (number(dig(part, "added", key)) for key in ("value", "low", "high"))
    if value is None:
        return ""
    bounds = "" if low is None or high is None else f" [{100 * low:+.1f}, {100 * high:+.1f}]"
    return f"; added {100 * value:+.1f}{bounds}"


# ------------------------------------------------------------------------------------------------- outside sets


def outside(view: View) -> Grid | None:
    """Public and other sets: a row a set and system, and what is kept of the reference's first metric."""
    tasks = {task: told for task, told in branch(view.results, "outside").items() if isinstance(told, Mapping)}
    values = {(task, name): own for task, told in tasks.items() for name, own in told.items()
              if name != "recovery" and isinstance(own, Mapping) and _has_numbers(own)}  # fmt: skip
    measured = [m for own in values.values() for m, v in own.items() if number(v) is not None]
    metrics = in_order(measured, ("nDCG@10", "Recall@100", *METRICS))[:5]
    rows = []
    for task, told in tasks.items():
        for name in in_order([name for of, name in values if of == task], SYSTEMS):
            kept = branch(told, "recovery", name)
            first = next(
                (m for m in in_order(kept, ("nDCG@10", *METRICS)) if Interval.of(kept[m]).value is not None), None
            )
            share = f"{clean(first)} {Interval.of(kept[first]).text()}" if first is not None else MISSING
            rows.append(
                Row(
                    [
                        clean(task),
                        clean(name),
                        *(decimals(values[task, name].get(m)) for m in metrics),
                        share,
                        count(told.get("queries")),
                        count(told.get("documents")),
                        described(told.get("source")) or MISSING,
                    ],
                    name == view.candidate,
                )
            )
    header = ["set", "system", *map(clean, metrics), "recovery", "queries", "documents", "source"]
    return grid("Outside sets", header, rows, left=(0, 1, len(header) - 1))


def _has_numbers(values: Mapping[str, Any]) -> bool:
    return any(number(value) is not None for value in values.values())


# ------------------------------------------------------------------------------------------------ disagreements


def disagreements(view: View) -> Sequence[Mapping[str, Any]]:
    """The candidate's queries on which it and the reference differ most."""
    return items(dig(view.results, "disagreements", view.candidate, view.set))
