"""A realistic results.json: what the whole pipeline would leave behind, without running it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

LANGUAGES = ("de", "en", "es", "fr", "id", "it", "pt", "tr")
QUALITY = {  # macro P@1, and the share of it that single languages lie around
    "teacher-base": 0.171,
    "teacher": 0.447,
    "student-untrained": 0.183,
    "student-aligned": 0.416,
    "student-refined": 0.4425,
}
ABOVE_P1 = {"P@1": 1.0, "P@10": 0.19, "nDCG@10": 1.22, "MRR@10": 1.16, "Recall@100": 1.9}
LATENCY = {"teacher": (12.21, 14.9, 402.0), "student-refined": (5.04, 6.37, 1187.0)}


def _quality(rng: random.Random, languages: Sequence[str]) -> dict[str, Any]:
    """{SYSTEM: {SCOPE: {METRIC: value}}}: every language is as hard for all systems."""
    ease = {lang: rng.uniform(0.8, 1.2) for lang in languages}
    found = {}
    for system, level in QUALITY.items():
        own = {lang: level * ease[lang] * rng.uniform(0.975, 1.02) for lang in languages}
        scopes = {
            lang: {"queries": 180 + 7 * i, **{m: round(min(1.0, own[lang] * f), 6) for m, f in ABOVE_P1.items()}}
            for i, lang in enumerate(languages)
        }
        mean = {m: sum(s[m] for s in scopes.values()) / max(1, len(scopes)) for m in ABOVE_P1}
        total = sum(s["queries"] for s in scopes.values())
        found[system] = {**scopes, "macro": {"queries": total, **mean}, "all": {"queries": total, **mean}}
    return found


def _recovery(quality: dict[str, Any], languages: Sequence[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for system in QUALITY:
        if system == "teacher":
            continue
        scopes: dict[str, Any] = {}
        for scope in (*languages, "macro", "all"):
            half = 0.013 if scope in ("macro", "all") else 0.034
            ratios = {m: quality[system][scope][m] / (quality["teacher"][scope][m] or 1) for m in ABOVE_P1}
            interval = {m: {"value": v, "low": v - half, "high": v + half * 0.9} for m, v in ratios.items()}
            scopes["micro" if scope == "all" else scope] = interval
        lowest = {m: min(languages, key=lambda lang: scopes[lang][m]["value"]) for m in ABOVE_P1}
        worst = {m: {**scopes[lang][m], "language": lang} for m, lang in lowest.items()}
        found[system] = {**scopes, "worst": worst}
    return found


def _training(rng: random.Random) -> dict[str, Any]:
    def loss(steps: int, start: float, end: float) -> list[dict[str, float]]:
        return [
            {"step": s, "loss": end + (start - end) * (1 - s / steps) ** 3 + rng.gauss(0, 0.01) * start}
            for s in range(1, steps + 1)
        ]

    values = ((55, 0.36), (110, 0.425), (165, 0.449), (220, 0.455))
    curve = [{"step": step, "metric": "P@1", "value": value} for step, value in values]
    return {
        "teacher": {"curve": curve, "loss": loss(220, 3.4, 1.1), "seconds": 212.4, "last_quarter_gain": 0.006},
        "align": {"curve": [], "loss": loss(334, 1.6, 0.31), "seconds": 71.0},
        "refine": {"curve": [], "loss": loss(200, 2.9, 2.2), "seconds": 38.6},
    }


def _bench(languages: Sequence[str]) -> dict[str, Any]:
    latency, throughput = {}, {}
    for system, (p50, p99, rate) in LATENCY.items():
        one = {"batch": 1, "calls": 150, "p50_ms": p50, "p90_ms": p50 * 1.1, "p99_ms": p99, "tokenise_p50_ms": 0.21}
        scopes = {lang: {**one, "p50_ms": p50 * (1 + 0.01 * i)} for i, lang in enumerate(languages)}
        latency[system] = {"torch": {**scopes, "all": {**one, "calls": 150 * len(languages)}}}
        throughput[system] = {"torch": {"batch": 128, "queries_per_second": rate}}
    return {"latency": latency, "throughput": throughput}


def _bars(recovery: dict[str, Any], set_name: str) -> list[dict[str, Any]]:
    kept = recovery["student-refined"]["macro"]["P@1"]
    gain = "gain in macro P@1 of {} over {} on {}, interval above"
    return [
        {"name": "teacher P@1", "value": 0.447, "low": None, "bar": 0.42, "passed": True,
         "what": f"macro P@1 of the teacher on {set_name}, at least"},
        {"name": "recovery of P@1", "value": kept["value"], "low": kept["low"], "bar": 0.97, "passed": True,
         "what": f"macro recovery of P@1 by student-refined against teacher on {set_name}, at least"},
        {"name": "gain of align", "value": 0.233, "low": 0.211, "bar": 0.0, "passed": True,
         "what": gain.format("student-aligned", "student-untrained", set_name)},
        {"name": "gain of refine", "value": 0.0265, "low": -0.002, "bar": 0.0, "passed": None,
         "what": gain.format("student-refined", "student-aligned", set_name)},
        {"name": "latency ratio", "value": 0.413, "low": None, "bar": 0.5, "passed": True,
         "what": "median encoder latency of student-refined in torch over the teacher's, at most"},
    ]  # fmt: skip


def example_results(languages: Sequence[str] = LANGUAGES, set_name: str = "test") -> dict[str, Any]:
    """A whole results.json: five systems over ``languages`` on ``select`` and ``set_name``, bench, bars, curves."""
    rng = random.Random(7)
    quality = _quality(rng, languages)
    recovery = _recovery(quality, languages)
    overlap = {"student-untrained": 0.21, "student-aligned": 0.764, "student-refined": 0.719, "teacher-base": 0.305}
    gains = (("teacher", "teacher-base", "teacher", 0.276, 0.25, 0.301, "gain"),
             ("align", "student-untrained", "student-aligned", 0.233, 0.211, 0.254, "gain"),
             ("refine", "student-aligned", "student-refined", 0.0265, -0.002, 0.055, "undecided"))  # fmt: skip
    names = ("select", set_name)
    about = {"split": "dev", "queries": 1636, "documents": 3963, "languages": list(languages)}
    return {
        "schema": 1,
        "name": "quickstart",
        "provenance": {
            "commit": "481472a", "recipe_sha256": "9b1f" * 16, "seed": 7, "started": "2026-11-21T04:50:00+00:00",
            "versions": {"python": "3.11.7", "torch": "2.9.1", "transformers": "5.2.0"},
            "hardware": {"cpu": "2 cores", "memory_gib": 16}, "wall_seconds": 468.2,
            "steps": {"data": 1.4, "teacher": 230.1, "align": 71.0, "refine": 38.6},
        },
        "reference": "teacher",
        "sets": {name: {**about, "selected_on": name == "select"} for name in names},
        "systems": {
            name: {"parameters": 22713216 if "teacher" in name else 15615360,
                   "parameters_without_embeddings": 10788864 if "teacher" in name else 3691008,
                   "layers": 6 if "teacher" in name else 2, "dimensions": 384, "space": "5f3a" * 16}
            for name in QUALITY
        },
        "quality": {name: dict.fromkeys(names, scopes) for name, scopes in quality.items()},
        "recovery": {name: dict.fromkeys(names, scopes) for name, scopes in recovery.items()},
        "agreement": {
            name: dict.fromkeys(names, {lang: {"overlap@10": v - 0.01 * (i % 5), "cosine": v + 0.15}
                                        for i, lang in enumerate(("all", *languages))})
            for name, v in overlap.items()
        },
        **_bench(languages),
        "conditions": {"device": "cpu", "cpu": "Example CPU 2.5 GHz", "threads": 2, "dtype": "float32",
                       "max_length": 64, "warmup": 10, "repeats": 3},
        "slices": {},
        "tests": [
            {"name": f"gain of {stage}", "stage": stage, "systems": [after, before], "set": name, "metric": metric,
             "difference": difference, "low": low, "high": high, "verdict": verdict}
            for name in dict.fromkeys(names)
            for stage, before, after, difference, low, high, verdict in gains
            for metric in ("P@1", "nDCG@10")
        ],
        "ann": {"verdict": "not measured"},
        "ledger": [],
        "bars": _bars(recovery, set_name),
        "training": _training(rng),
        "warnings": ["fewer than 30 queries on test, too few to tell much: tr (28)"],
    }  # fmt: skip
