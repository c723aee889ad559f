"""A results.json with everything that the evaluator can tell: the example of ``results.py`` and what came after it."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from builders.results import LANGUAGES, example_results

from harness.evaluation.statistics.intervals import METHOD

Tree = dict[str, Any]
SYSTEM, REFERENCE, SET = "student-refined", "teacher", "test"
SCRIPTED = "<script>document.title='ran';document.body.remove()</script>"
LONG = "Donaudampfschifffahrtselektrizitätenhauptbetriebswerkbauunterbeamtengesellschaft" * 3
STEPS = (("cut", "student-untrained", REFERENCE), ("align", "student-aligned", "student-untrained"),
         ("refine", SYSTEM, "student-aligned"), ("quantise", "student-int8", SYSTEM),
         ("approximate index", "student-ann", "student-int8"))  # fmt: skip
FEW = "tr"  # the language that is too small to tell


def rich_results(languages: Sequence[str] = LANGUAGES) -> Tree:
    """``example_results`` with claims, ledger, slices, leakage, languages, bias, effort, outside sets, differences."""
    rng = random.Random(11)
    results = example_results(languages)
    few = FEW if FEW in languages else languages[-1]
    _more_systems(results, rng)
    _joint(results, few)
    results["tests"] += _claims(results, languages, few)
    results["bars"] = _bars(results)
    _timed(results)
    results |= {
        "ledger": _ledger(results, languages, few, rng),
        "slices": {SYSTEM: {SET: _slices(rng)}},
        "statistics": {"confidence": 0.95, "resamples": 2000, "seed": 7, "method": METHOD},
        "labels": {"files": [{"name": "pool-filled.tsv", "labels": 120, "sha256": "92ab", "when": "2026-11-21"}],
                   "labels": 120, "used": {"select": 0, SET: 117}},
        "leakage": {
            SET: {"queries": 6415, "seen": {"train": 13, "align": 402, "streams": 0, "any": 411}, "share": 411 / 6415},
            "select": {"queries": 1671, "seen": {"train": 2, "align": 0, "streams": 0, "any": 2}, "share": 0.0012},
        },
        "alike": {SYSTEM: {SET: _alike(languages)}},
        "languages": {SET: _languages(languages, rng)},
        "bias": _bias(languages),
        "ann": _ann(),
        "outside": _outside(),
        "disagreements": {SYSTEM: {SET: _disagreements()}},
    }
    return results


def _more_systems(results: Tree, rng: random.Random) -> None:
    """The quantised student, and the one on an approximate index."""
    for name, loss in (("student-int8", 0.997), ("student-ann", 0.991)):
        for part in ("quality", "recovery", "agreement", "systems"):
            results[part][name] = _scaled(results[part][SYSTEM], loss)
    for by_set in results["quality"].values():
        for scopes in by_set.values():
            for scope in scopes.values():
                scope |= {"Hit@10": min(1.0, scope["P@1"] * 1.7), "judged@10": 0.18 + 0.01 * rng.random()}
    for by_set in results["agreement"].values():
        for scopes in by_set.values():
            for scope in scopes.values():
                scope["rbo@100"] = scope["overlap@10"] - 0.03


def _scaled(tree: Any, by: float) -> Any:
    if isinstance(tree, dict):
        return {key: _scaled(value, 1.0 if key in ("queries", "parameters") else by) for key, value in tree.items()}
    return tree * by if isinstance(tree, float) else tree


def _joint(results: Tree, few: str) -> None:
    """Bounds that hold for all languages at once; none where a language is too small."""
    for by_set in results["recovery"].values():
        for scopes in by_set.values():
            for lang, metrics in scopes.items():
                if lang not in ("macro", "micro", "worst"):
                    for entry in metrics.values():
                        entry["simultaneous_low"] = None if lang == few else entry["low"] - 0.017
                        if lang == few:
                            entry |= {"low": entry["value"] - 0.21, "high": entry["value"] + 0.19}
            for metric, entry in scopes["worst"].items():
                known = [
                    row[metric]["simultaneous_low"]
                    for lang, row in scopes.items()
                    if lang not in ("macro", "micro", "worst") and row[metric]["simultaneous_low"] is not None
                ]
                entry |= {"low": min(known, default=None), "method": "max-t"}
            scopes["weighted"] = {m: {k: v - 0.004 for k, v in entry.items()} for m, entry in scopes["macro"].items()}


def _claims(results: Tree, languages: Sequence[str], few: str) -> list[Tree]:
    rows = []
    for metric in ("P@1", "nDCG@10"):
        for scope in ("macro", "all languages", *languages):
            kept = results["recovery"][SYSTEM][SET]["macro" if scope == "all languages" else scope][metric]
            shown = "undecided" if scope in (few, "all languages") else "shown" if kept["low"] > 0.95 else "not shown"
            rows.append(
                {
                    "name": f"{SYSTEM} loses less than 5 %",
                    "kind": "non-inferiority",
                    "systems": [SYSTEM, REFERENCE],
                    "set": SET,
                    "metric": metric,
                    "scope": scope,
                    "margin": 0.05,
                    "value": kept["value"],
                    "low": kept["low"],
                    "p": 0.0004 if shown == "shown" else 0.21,
                    "p_adjusted": 0.003 if shown == "shown" else 0.84,
                    "queries": 28 if scope == few else 884,
                    "groups": 14 if scope == few else 470,
                    "verdict": shown,
                }
            )
    return rows


def _bars(results: Tree) -> list[Tree]:
    kept = results["recovery"][SYSTEM][SET]
    worst = kept["worst"]["P@1"]
    return [
        {
            "name": "teacher P@1",
            "what": "macro P@1 of the teacher on test, at least",
            "value": 0.447,
            "low": None,
            "bar": 0.42,
            "passed": True,
            "status": "reached",
        },
        {
            "name": "recovery of P@1",
            "what": "macro recovery of P@1 by student-refined against teacher on test, at least",
            "value": kept["macro"]["P@1"]["value"],
            "low": kept["macro"]["P@1"]["low"],
            "bound": "one-sided 95 %",
            "bar": 0.97,
            "passed": True,
            "status": "reached",
        },
        {
            "name": "worst language, P@1",
            "what": "recovery of P@1 in the worst language on test, at least",
            "value": worst["value"],
            "low": worst["low"],
            "bound": "one-sided 95 %, all languages at once",
            "bar": 0.95,
            "passed": None,
            "status": "undecided",
            "why": f"too little data, or teacher finds nothing, in {FEW}",
        },
        {
            "name": "latency ratio",
            "what": "median encoder latency of student-refined in torch over the teacher's, at most",
            "value": 0.413,
            "low": None,
            "bar": 0.5,
            "passed": True,
            "status": "reached",
        },
    ]


def _timed(results: Tree) -> None:
    """The whole path, rare calls, and throughput by batch size with memory and price."""
    results["latency"][SYSTEM]["onnx-int8"] = _scaled(results["latency"][SYSTEM]["torch"], 0.46)
    results["throughput"][SYSTEM]["onnx-int8"] = {"batch": 64, "queries_per_second": 1904.0}
    for by_engine in results["latency"].values():
        for scopes in by_engine.values():
            for name, row in scopes.items():
                row |= {
                    "search_p50_ms": 0.84,
                    "whole_p50_ms": row["p50_ms"] + 1.1,
                    "whole_p90_ms": row["p50_ms"] * 1.2 + 1.2,
                    "whole_p99_ms": row["p99_ms"] + 1.6,
                }
                if name == "all":
                    row["p99_9_ms"] = row["p99_ms"] * 1.8
    results["noise"] = {"percent": 2.34, "control": {"system": SYSTEM, "p50_ratio": 1.01}, "warning": None}
    for by_engine in results["throughput"].values():
        for told in by_engine.values():
            top = told["queries_per_second"]
            sizes = {1: 0.17, 2: 0.3, 4: 0.48, 8: 0.66, 16: 0.81, 32: 0.93, 64: 0.99, 128: 1.0}
            told |= {
                "by_batch": {str(size): top * share for size, share in sizes.items()},
                "stopped": "no longer rising",
                "peak_memory_mb": 812.0,
                "cost_per_million": 1e6 / top / 3600 * 0.38,
                "cost_per_million_batch_1": 1e6 / top / 0.17 / 3600 * 0.38,
                "price_per_hour": 0.38,
                "currency": "EUR",
            }


def _ledger(results: Tree, languages: Sequence[str], few: str, rng: random.Random) -> list[Tree]:
    rows = []
    for step, after, before in STEPS:
        for scope in ("macro", *languages):
            one, two = (results["quality"][name][SET][scope]["P@1"] for name in (before, after))
            half = (0.2 if scope == few else 0.024) * (1 if scope != "macro" else 0.4) * (0.3 if "int8" in after else 1)
            low, high = two - one - half, two - one + half * rng.uniform(0.9, 1.1)
            verdict = "undecided" if low <= 0 <= high else "gain" if low > 0 else "loss"
            rows.append(
                {
                    "step": step,
                    "systems": [after, before],
                    "set": SET,
                    "metric": "P@1",
                    "scope": scope,
                    "before": one,
                    "after": two,
                    "difference": two - one,
                    "low": low,
                    "high": high,
                    "verdict": verdict,
                    "queries": 6415 if scope == "macro" else 884,
                }
            )
        rows.append(
            {
                "step": step,
                "systems": [after, before],
                "set": SET,
                "metric": "P@1",
                "scope": "length=short",
                "before": 0.4,
                "after": 0.39,
                "difference": -0.01,
                "low": -0.03,
                "high": 0.01,
                "verdict": "undecided",
                "queries": 2100,
            }
        )
    return rows


def _slices(rng: random.Random) -> Tree:
    values = {"length": ("short", "medium", "long"), "frequency": ("head", "torso", "tail"), "seen": ("yes", "no"),
              "market": ("DE", "FR", "ES", "IT", "US & Canada", "(none)")}  # fmt: skip
    found: Tree = {}
    for name, parts in values.items():
        for part in parts:
            few = part in ("yes", "(none)")
            kept, half = rng.uniform(0.95, 1.01), 0.16 if few else rng.uniform(0.01, 0.04)
            found.setdefault(name, {})[part] = {
                "queries": 21 if few else rng.randint(300, 3000), "groups": 12 if few else 210,
                "reference": {"P@1": 0.44, "nDCG@10": 0.55}, "system": {"P@1": 0.44 * kept, "nDCG@10": 0.55 * kept},
                "recovery": {m: {"value": kept, "low": kept - half, "high": kept + half} for m in ("P@1", "nDCG@10")},
                "undecided": few,
            }  # fmt: skip
    return found


def _alike(languages: Sequence[str]) -> Tree:
    told = {
        "languages": list(languages),
        "queries": 6387,
        "permutation": {"statistic": 0.41, "p": 0.0321, "permutations": 2000},
        "permutation_of_recovery": {"statistic": 0.2, "p": 0.118, "permutations": 2000},
        "sd_recovery": {"value": 0.0094, "low": 0.0, "high": 0.0182},
        "friedman": {"statistic": 12.4, "p": 0.0871, "groups": 227, "tests": "ranks of the languages within groups"},
        "kruskal": None,
        "variance": {"language": 0.0021, "slice": 0.0113, "slices": {"length": 0.0113}, "total": 0.19, "rest": 0.9866},
        "verdict": "not alike in points",
        "note": "left out, fewer than 30 groups: tr (14); languages permuted within 470 groups",
    }
    return {
        "P@1": told,
        "nDCG@10": {
            **told,
            "permutation": {"statistic": 0.1, "p": 0.4, "permutations": 2000},
            "verdict": "no difference found",
        },
    }


def _languages(languages: Sequence[str], rng: random.Random) -> Tree:
    scripts = {"ja": "Han", "ar": "Arabic", "ru": "Cyrillic"}
    return {
        lang: {
            "script": scripts.get(lang, "Latin"),
            "tokens_per_query": 5 + 4 * rng.random(),
            "unknown_share": 0.002 * i,
            "train_share": 1 / len(languages),
            "cosine": {SYSTEM: 0.9 + 0.01 * rng.random()},
            "recovery": {SYSTEM: 0.98},
        }
        for i, lang in enumerate(languages)
    }


def _bias(languages: Sequence[str]) -> Tree:
    total = sum(range(1, len(languages) + 1))
    wanted = {lang: (len(languages) - i) / total for i, lang in enumerate(languages)}
    found: Tree = {}
    for name, lean in ((REFERENCE, 0.02), (SYSTEM, 0.05)):
        first = languages[0]
        documents = {
            lang: {"share_of_top": share + lean if lang == first else share * (1 - lean), "share_of_relevant": share,
                   "share_of_pool": 1 / len(languages)}
            for lang, share in wanted.items()
        }  # fmt: skip
        own = {"queries": 6415, "share_of_top": 0.31, "share_of_relevant": 0.25, "inclination": 0.06}
        found[name] = {SET: {"documents": documents, "own_language": own, "english": {**own, "inclination": lean},
                             "rank_variance": {"value": 14.2 + lean, "documents": 431, "not_found": 0.04}}}  # fmt: skip
    for key in ("own_language", "english"):
        found[SYSTEM][SET][key]["added"] = {"value": 0.03, "low": 0.012, "high": 0.048}
    for key, number in (("own_language", "inclination"), ("english", "inclination"), ("rank_variance", "value")):
        found[SYSTEM][SET][key]["reference"] = found[REFERENCE][SET][key][number]
    return found


def _ann() -> Tree:
    indexes: Tree = {}
    for index, (slow, held) in {"hnsw": (1.0, 64), "ivf": (0.7, 32), "ivf-pq": (1.6, None)}.items():
        systems = {}
        for name, behind in ((REFERENCE, 1.0), (SYSTEM, 1.35)):
            curve = [{"effort": e, "recall@10": (0.93 if index == "ivf-pq" else 1.0) - 0.42 * behind / (1 + e / 6),
                      "queries_per_second": 9000 / slow / (1 + e / 12), "p50_ms": 0.1 * slow * (1 + e / 12)}
                     for e in (8, 16, 32, 64, 128, 256, 512)]  # fmt: skip
            systems[name] = {"curve": curve, "within_1_percent": held and held * (2 if name == SYSTEM else 1)}
        indexes[index] = {
            "built": {"seconds": 31.2 * slow, "bytes": 412_000_000, "parameters": {"M": 32, "efConstruction": 200}},
            "systems": systems,
            "effort_ratio": {"systems": [SYSTEM, REFERENCE], "value": 2.0, "low": 1.0, "high": 2.0, "loss": 0.01,
                             "verdict": "undecided"} if held else None,
            "end_to_end": {"student": {"encode_p50_ms": 2.1, "search_p50_ms": 0.7, "whole_ms": 2.8},
                           "teacher": {"encode_p50_ms": 12.2, "search_p50_ms": 0.5, "whole_ms": 12.7},
                           "speed_up": 4.536, "encoder_speed_up": 5.81} if held else None,
        }  # fmt: skip
    return {"verdict": "measured", "k": 10, "documents": 264_112, "dimensions": 384,
            "exact": {"queries_per_second": 41.0}, "indexes": indexes}  # fmt: skip


def _outside() -> Tree:
    def task(queries: int, documents: int, source: str) -> Tree:
        values = {REFERENCE: {"nDCG@10": 0.741, "Recall@100": 0.962}, SYSTEM: {"nDCG@10": 0.702, "Recall@100": 0.951}}
        kept = {SYSTEM: {"nDCG@10": {"value": 0.947, "low": 0.921, "high": 0.974}}}
        return {**values, "recovery": kept, "queries": queries, "documents": documents, "source": source}

    return {"scifact": task(300, 5183, "BEIR folder"), "MIRACLRetrieval": task(1200, 66000, "mteb")}


def _disagreements() -> list[Tree]:
    asked = (
        (SCRIPTED, "en"),
        ("ابتسامة مع عيون على شكل قلب", "ar"),
        ("👩🏽‍🚀🏴󠁧󠁢󠁳󠁣󠁴󠁿 familia 👨‍👩‍👧‍👦 feliz", "es"),
        (LONG, "de"),
        ("笑顔の猫、ハートの目", "ja"),
        ('"><img src=x onerror=alert(1)>', "en"),
        ("caffè bollente", "it"),
    )
    rows = []
    for number, (query, language) in enumerate(asked):
        good = {"id": f"d{number}", "text": f"smiling cat face with heart-eyes {number}", "relevant": True}
        bad = [{"id": f"x{number}-{i}", "text": (query, LONG, "red heart", "</li></ol><b>out", "smiling face")[i],
                "relevant": (False, None)[i % 2]} for i in range(5)]  # fmt: skip
        rows.append({"query": query, "id": f"q{number}", "language": language, "metric": "nDCG@10",
                     "reference_score": 1.0 if number % 3 else 0.0, "score": 0.0 if number % 3 else 0.63,
                     "reference_hits": [good, *bad[:4]] if number % 3 else bad,
                     "hits": bad if number % 3 else [bad[0], good, *bad[1:4]]})  # fmt: skip
    return rows
