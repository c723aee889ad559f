"""Tables and sentences of what search and encoding cost: the effort of approximate indexes, speed by batch size."""

from __future__ import annotations

from collections.abc import Mapping

from harness.evaluation.report.curves import INDEX_NAMES, by_batch
from harness.evaluation.report.tables import Grid, Row, grid
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
    number,
    rate,
)
from harness.evaluation.report.view import SYSTEMS, View
from harness.vectors.approximate import LEAST_DOCUMENTS, TOO_SMALL

PRICE = (
    "Per million queries: encoding only, at the best batch, on a machine that is never idle; one by one: the same "
    "{one}. Neither holds search, nor the hours in which nobody asks."
)
MEMORY = (
    "Peak MB: of one call, beyond what rested in memory before it, without the weights{where}. A service needs both, "
    "beside its own process."
)


def effort_note(view: View) -> list[str]:
    """What the approximate indexes cost, that this index is too small to tell, or that nothing was measured."""
    told = branch(view.results, "ann")
    if told and not branch(told, "indexes"):  # earlier files call a small collection too small, measured or not
        return ["The cost of an approximate index: not measured (set bench.ann)."]
    deployed = _deployed(told)
    verdict, documents = clean(told.get("verdict")), number(told.get("documents"))
    size = f" ({count(documents)} documents)" if documents is not None else ""
    if verdict == TOO_SMALL:
        least = f"Under {LEAST_DOCUMENTS:,} documents no conclusion is drawn."
        return [f"The cost of an approximate index: {verdict}{size}. {least}", *deployed]
    known = []
    for index, about in branch(told, "indexes").items():
        ratio = branch(about, "effort_ratio")
        why = f" ({clean(ratio.get('why'))})" if ratio.get("why") else ""
        if ratio:
            known.append(f"{INDEX_NAMES.get(index, clean(index))} {_ratio(ratio)}{why}")
    if not known:
        return [f"The cost of an approximate index: {verdict}{size}.", *deployed] if verdict else []
    head = f"Search effort of the student over that of {clean(view.reference)}, each within 1 % of its exact search"
    return [f"{head}{size}: {'; '.join(known)}.", *deployed]


def _deployed(ann: Mapping[str, object]) -> list[str]:
    """Which index and effort the system with the approximate index searches with."""
    told = branch(ann, "deployed")
    if not told:
        return []
    lists = number(dig(ann, "indexes", str(told.get("index")), "built", "parameters", "lists"))
    every = lists is not None and (number(told.get("effort")) or 0) >= lists
    exhaustive = f" All {count(lists)} lists are searched: this is exhaustive." if every else ""
    index = INDEX_NAMES.get(str(told.get("index")), clean(told.get("index")))
    reasons = {"set": "as the recipe sets it", "within 1 %": "where the student comes within 1 % of its exact search"}
    why = reasons.get(str(told.get("why")), "the largest measured: 1 % was not reached")
    return [f"{clean(told.get('system'))} searches {index} at effort {count(told.get('effort'))}, {why}.{exhaustive}"]


def effort(view: View) -> Grid | None:
    """At which effort each system comes within 1 % of its own exact search."""
    rows = []
    indexes = branch(view.results, "ann", "indexes")
    names = in_order([name for about in indexes.values() for name in branch(about, "systems")], SYSTEMS)
    for index, about in indexes.items():
        efforts = [dig(about, "systems", name, "within_1_percent") for name in names]
        shown = [
            count(value)
            if number(value) is not None
            else "not reached"
            if name in branch(about, "systems")
            else MISSING
            for name, value in zip(names, efforts, strict=True)
        ]
        built = branch(about, "built")
        end = dig(about, "end_to_end")
        speed, alone = (number(dig(end, key)) for key in ("speed_up", "encoder_speed_up"))
        rows.append(
            Row(
                [
                    INDEX_NAMES.get(index, clean(index)),
                    decimals(built.get("seconds"), 1),
                    _megabytes(built.get("bytes")),
                    described(built.get("parameters")),
                    *shown,
                    _ratio(dig(about, "effort_ratio")),
                    MISSING if speed is None else f"{speed:.2f}×",
                    MISSING if alone is None else f"{alone:.2f}×",
                    _calls(branch(end)),
                ]
            )
        )
    header = [
        "index",
        "built in s",
        "MB",
        "parameters",
        *(f"effort within 1 %, {clean(n)}" for n in names),
        "effort ratio",
        "end to end",
        "encoder alone",
        "calls",
    ]
    threads = number(dig(view.results, "ann", "threads"))
    on = "" if threads is None else f" Threads: {count(threads)}."
    note = (
        "Effort within 1 %: from which on each system stays so near its own exact search; efforts are measured in "
        "steps, so an equal one may differ by a step. End to end: encoding (with torch) and searching with the "
        "reference over the same with the student, each at that effort; medians of so many calls, one at a time."
        f"{on}"
    )
    return grid("Approximate indexes", header, rows, note, left=(0, 3))


def _ratio(entry: object) -> str:
    """The student's effort over the reference's, with its interval and what that shows."""
    found = Interval.of(entry)
    known = {found.low, found.high} != {None}
    bounds = f" [{decimals(found.low, 2)}, {decimals(found.high, 2)}]" if known else ""
    return f"{decimals(found.value, 2)}{bounds} {clean(dig(entry, 'verdict') or '')}".strip()


def _calls(end: Mapping[str, object]) -> str:
    """How many calls stand behind the medians of searching and, where it is told, of encoding."""
    told = {"searches": number(end.get("calls")), "encoding": number(end.get("encode_calls"))}
    return "; ".join(f"{what}: {count(many)} calls" for what, many in told.items() if many is not None) or MISSING


def _megabytes(value: object) -> str:
    found = number(value)
    return MISSING if found is None else f"{found / 1e6:,.1f}"


def _money(price: object, told: Mapping[str, object]) -> str:
    found = number(price)
    return MISSING if found is None else f"{found:.2f} {clean(told.get('currency') or '')}".strip()


def _common_batch(view: View) -> str | None:
    """The largest batch of which every system's memory is known."""
    peaks = [branch(view.results, "throughput", s, e, "peak_memory_mb_by_batch") for s, e in view.timed]
    known = [{size for size, peak in told.items() if size.isdecimal() and number(peak) is not None} for told in peaks]
    return max(set.intersection(*known), key=int, default=None) if known else None


def batches(view: View) -> Grid | None:
    """Queries per second by batch size, why it stopped, memory and price."""
    common = _common_batch(view)
    curves = {(s, e): dict(by_batch(dig(view.results, "throughput", s, e, "by_batch"))) for s, e in view.timed}
    sizes = sorted({size for curve in curves.values() for size in curve})
    rows = []
    for (system, engine), curve in curves.items():
        told = branch(view.results, "throughput", system, engine)
        peak = dig(told, "peak_memory_mb_by_batch", common) if common else told.get("peak_memory_mb")
        money = (_money(told.get(key), told) for key in ("cost_per_million", "cost_per_million_batch_1"))
        rows.append(Row([clean(system), clean(engine), *(rate(curve.get(size)) for size in sizes), decimals(peak, 0),
                         decimals(told.get("weights_mb"), 0), *money, clean(told.get("stopped") or MISSING)],
                        system == view.candidate))  # fmt: skip
    header = ["system", "engine", *(f"batch {size:g}" for size in sizes),
              f"peak MB at batch {common}" if common else "peak MB", "weights MB", "per million queries",
              "per million, one by one", "stopped"]  # fmt: skip
    if not any(curves.values()) and all(set(row.cells[2:]) <= {MISSING} for row in rows):
        return None
    where = "" if common else "; each system at its own best batch, so they can't be compared"
    notes = [MEMORY.format(where=where)] if any(row.cells[-5] != MISSING for row in rows) else []
    if any(row.cells[-3] != MISSING for row in rows):
        notes.append(PRICE.format(one="at batch 1" if 1 in sizes else "by the mean time of single calls"))
    return grid("Queries per second by batch size", header, rows, " ".join(notes), left=(0, 1, len(header) - 1))
