"""Every filter of mining by hand, the relevance model's scores, and the audit."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from harness.data.records import Documents, Record
from harness.recipe import MineSettings, ModelScores
from harness.runtime.errors import InputError
from harness.runtime.process import read_json
from harness.vectors.index import VectorIndex
from harness.vectors.mining import Ground, mine, read_tables
from harness.vectors.mining.audit import Counts, Scores, audit_markdown, audit_of, bin_width, worst_first
from harness.vectors.mining.filters import FILTERS, fallen, picked
from harness.vectors.mining.model_scores import PairScores, read_pair_scores

#          own    equal
SCORES = [[0.875, 0.8125, 0.75, 0.625, 0.5, 0.25, 0.125, -0.25, -np.inf]]
OWN = [[True, False, False, False, False, False, False, False, False]]
FORBIDDEN = [[True, True, False, False, False, False, False, False, True]]


def names(settings: MineSettings, positive: float = 0.875, model: Any = None) -> list[str]:
    """What each of the hits above falls to."""
    codes = fallen(
        np.float32(SCORES), np.array(OWN), np.array(FORBIDDEN), np.float32([positive]),
        None if model is None else np.float32([model]), settings,
    )  # fmt: skip
    return [{-1: "", -2: "none"}.get(code, FILTERS[max(code, 0)]) for code in codes[0].tolist()]


HEAD = ["positive", "known"]


@pytest.mark.parametrize(
    ("settings", "positive", "expected"),
    [
        ({}, 0.875, ["", "", "", "", "", ""]),
        ({"skip": 2}, 0.875, ["rank", "rank", "", "", "", ""]),  # ranks count what may be a negative
        ({"skip": 1, "until": 3}, 0.875, ["rank", "", "", "rank", "rank", "rank"]),
        ({"max_score": 0.625}, 0.875, ["max_score", "", "", "", "", ""]),  # the bound itself is allowed
        ({"min_score": 0.25}, 0.875, ["", "", "", "", "min_score", "min_score"]),
        ({"margin": 0.25}, 0.875, ["margin", "margin", "", "", "", ""]),  # below, not at: .625 falls
        ({"margin": 0}, 0.625, ["margin", "margin", "", "", "", ""]),
        ({"share": 0.5}, 0.5, ["share", "share", "share", "share", "", ""]),  # .25 is not below half of .5
        ({"share": 0.5}, -0.375, ["share"] * 6),  # below -.5625: half as far again, not -.1875
        ({"share": 0.5, "margin": 0}, np.inf, ["", "", "", "", "", ""]),  # no positive, no margin
        ({"skip": 1, "max_score": 0.5, "margin": 0.5, "share": 0.25, "min_score": 0}, 0.875,
         ["rank", "max_score", "margin", "share", "", "min_score"]),
    ],
)  # fmt: skip
def test_what_falls_to_which_filter(settings: dict[str, Any], positive: float, expected: list[str]) -> None:
    assert names(MineSettings(**settings), positive) == [*HEAD, *expected, "none"]


@pytest.mark.parametrize(("unknown", "told"), [("keep", ""), ("drop", "model_scores")])
def test_a_relevance_model_takes_what_it_holds_for_relevant(unknown: Any, told: str) -> None:
    settings = MineSettings(model_scores=ModelScores(path="x", max_score=0.5, unknown=unknown))
    model = [0.9, 0.9, 0.4, 0.5, 0.51, np.nan, np.nan, -3.0, np.nan]
    assert names(settings, model=model) == [*HEAD, "", "", "model_scores", told, told, "", "none"]


def test_picking_by_hand() -> None:
    passes_BK = np.array([[False, True, True, False, True], [False] * 5])
    row_BK, query_B = np.arange(10).reshape(2, 5), np.arange(2)
    top_BK = picked(passes_BK, row_BK, query_B, MineSettings(keep=2))
    assert top_BK.tolist() == [[False, True, True, False, False], [False] * 5]
    drawn = [picked(passes_BK, row_BK, query_B, MineSettings(keep=2, pick="random", seed=seed)) for seed in range(300)]
    assert all(kept.sum() == 2 and not (kept & ~passes_BK).any() for kept in drawn)
    often = np.sum(drawn, axis=0)[0]
    assert often[[1, 2, 4]].sum() == 600 and often[[1, 2, 4]].min() > 160, "each is drawn about 200 times"
    assert picked(passes_BK, row_BK, query_B, MineSettings(keep=9, pick="random")).tolist() == passes_BK.tolist()


def test_impossible_values_are_refused() -> None:
    nan = float("nan")
    wrong = [("margin", -0.1), ("share", 0.0), ("share", 1.5), ("max_score", nan), ("pick", "best"), ("until", 0)]
    for name, value in wrong:
        with pytest.raises(ValidationError):
            MineSettings(**{name: value})


# ------------------------------------------------------------------------------------------- a file of model scores

PAIRS = [
    ("q1", "a", 0.5), ("q2", "b", 0.25), ("q1", "c", 0.75), ("q1", "a", 0.9), ("q1", "a", 0.1), ("q9", "a", 1.0),
    ("q2", "z", 1.0),
]  # fmt: skip


def write_pairs(path: Path, pairs: list[tuple[Any, Any, Any]]) -> Path:
    rows = [dict(zip(("query_id", "document_id", "score"), pair, strict=True)) for pair in pairs]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.mark.parametrize("name", ["pairs.parquet", "pairs.jsonl"])
@pytest.mark.parametrize("batch", [2, 100])
def test_pair_scores(name: str, batch: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("harness.vectors.mining.model_scores.BATCH", batch)
    pairs = read_pair_scores(write_pairs(tmp_path / name, PAIRS), {"q1": 3, "q2": 5}, {"a": 0, "b": 1, "c": 2})
    assert len(pairs) == 3
    found = pairs.of(np.array([3, 5, 4]), np.array([[0, 2, 1], [1, -1, 0], [2, 1, 0]]))
    np.testing.assert_array_equal(found, np.float32([[0.9, 0.75, np.nan], [0.25, np.nan, np.nan], [np.nan] * 3]))


def test_no_pairs_at_all() -> None:
    none = PairScores(np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32), 3)
    assert np.isnan(none.of(np.array([0]), np.array([[1, 2]]))).all()


def test_wrong_pairs_are_named(tmp_path: Path) -> None:
    def refused(path: Path) -> str:
        with pytest.raises(InputError) as error:
            read_pair_scores(path, {"q": 0}, {"d": 0})
        return str(error.value)

    lines = tmp_path / "pairs.jsonl"
    for wrong in (("q", "d", None), ("q", 3, 0.5), ("q", "d", "0.5"), ("q", "d", True), ("q", "d", float("nan"))):
        assert "pairs.jsonl:2: a pair that is not complete" in refused(write_pairs(lines, [("q", "d", 1.0), wrong]))
    lines.write_text('{"query_id": "q", "document_id": "d", "score": 1}\n[1]\n')
    assert "pairs.jsonl:2: not a JSON object" in refused(lines)
    table = tmp_path / "pairs.parquet"
    pq.write_table(pa.table({"query_id": ["q"], "score": [1.0]}), table)
    assert "columns are missing" in refused(table)
    table.write_bytes(b"PAR1")
    assert "no Parquet file" in refused(table)
    assert "not readable" in refused(tmp_path / "nowhere.jsonl")


# ----------------------------------------------------------------------------------------------------- from end to end

ANGLES = {"own": 0.9, "copy": 0.85, "near": 0.8, "middle": 0.5, "far": 0.2}  # cosine with the query


def ground() -> Ground:
    """One query in a plane; a document of each cosine above; another query without negatives."""
    vectors = [[cosine, np.sqrt(1 - cosine**2)] for cosine in ANGLES.values()]
    texts = ["the  Answer", "The answer", "<b>near</b> | *x*\n# y", "middle", "far"]
    documents = Documents(list(ANGLES), texts, ["en"] * 5, [""] * 5)
    records = [
        Record("q", "a [question](http://x)", "en", "", {"own": 1.0}),
        Record("r", "another", "de", "", dict.fromkeys(ANGLES, 1.0)),
    ]
    document_ND, query_QD = np.float32(vectors), np.float32([[1, 0], [1, 0]])
    index = VectorIndex.build(document_ND, documents.ids, kind="exact")
    return Ground(documents, records, index, lambda q: query_QD[q], lambda row: document_ND[row], False, {})


def test_duplicates_of_a_positive_fall_and_the_audit_says_what_did(tmp_path: Path) -> None:
    pairs = write_pairs(tmp_path / "pairs.jsonl", [("q", "near", 0.99), ("q", "far", 0.01)])
    settings = MineSettings(top_k=9, model_scores=ModelScores(path=str(pairs), max_score=0.5))
    mine(tmp_path / "mined", ground(), settings)
    rows = [row for _, table in read_tables(tmp_path / "mined") for row in table.to_pylist()]
    assert [row["document_ids"] for row in rows] == [["middle", "far"], []]
    audit = read_json(tmp_path / "mined" / "audit.json")
    nothing = dict.fromkeys(FILTERS, 0)
    assert audit["fell_to"] == {**nothing, "positive": 6, "known": 1, "model_scores": 1, "not_picked": 0, "kept": 2}
    assert (audit["hits"], audit["queries"], audit["negatives"], audit["negatives_per_query"]) == (10, 2, 2, 1.0)
    assert (audit["queries_without_negatives"], audit["without_negatives"]) == (1, ["r"])
    english = audit["languages"]["en"]["scores"]
    assert english["negatives"]["histogram"] == [[0.2, 1], [0.5, 1]]
    assert english["positives"]["mean"] == pytest.approx(0.9)
    assert english["negatives"]["min"] == pytest.approx(0.2) and english["negatives"]["mean"] == pytest.approx(0.35)
    german = audit["languages"]["de"]
    assert german["scores"]["positives"]["count"] == 5 and german["scores"]["negatives"] is None
    assert audit["negatives_above_their_positive"] == 0 and audit["above_their_positive"] == []
    assert audit["samples"][0]["negatives"][0] == {"id": "middle", "score": 0.5, "text": "middle"}
    assert audit["settings"]["top_k"] == 9


def test_negatives_above_their_positive_are_shown_and_texts_escaped(tmp_path: Path) -> None:
    world = ground()
    records = [Record("q", "a [question](http://x)", "en", "", {"middle": 1.0}), world.records[1]]
    index, lookup = world.index, (world.query_vectors, world.document_vectors)
    mine(tmp_path / "mined", Ground(world.documents, records, index, *lookup, False, {}), MineSettings())
    audit = read_json(tmp_path / "mined" / "audit.json")
    assert audit["negatives_above_their_positive"] == 3 / 4  # own, copy and near
    shown = audit["above_their_positive"]
    assert [entry["id"] for entry in shown] == ["q"] and shown[0]["negatives"][0]["id"] == "own"
    text = (tmp_path / "mined" / "audit.md").read_text()
    assert "<b>" not in text and "&lt;b&gt;near&lt;/b&gt; \\| \\*x\\* \\# y" in text
    assert "a \\[question\\]\\(http://x\\)" in text and "75.00%" in text and "Without negatives, the first: r" in text


def test_histograms_are_drawn_over_one_range(tmp_path: Path) -> None:
    counts = Counts(0.01)
    for number in range(25):
        tally = counts.language(f"l{number:02}")
        tally.queries = 100 - number
        tally.negatives.add(np.float32([0.105, 0.105, 0.105, 0.105, 0.105, 0.105, 0.105, 0.105, 0.315]))
        if number:
            tally.positives.add(np.float32([-0.085, 0.905]))
    documents = Documents(["d"], ["d"], ["en"], [""])
    text = audit_markdown(audit_of(counts, {}, [], documents))
    assert "-0.090 to 0.930, 0.03 a column" in text and "Of 25 languages, the 20 with the most queries" in text
    rows = dict(re.findall(r"^\| (l\d\d \| \w+) \| `(.*)` \|$", text, re.MULTILINE))
    assert set(rows) == {f"l{number:02} | {side}" for number in range(20) for side in ("positives", "negatives")
                         if number or side == "negatives"}  # fmt: skip
    assert {len(bars) for bars in rows.values()} == {34}
    assert rows["l01 | positives"] == "█" + 32 * "·" + "█"
    assert rows["l00 | negatives"] == 6 * "·" + "█" + 6 * "·" + "▁" + 20 * "·"


def test_the_best_or_the_lowest_positive(tmp_path: Path) -> None:
    world = ground()
    records = [Record("q", "?", "en", "", {"own": 1.0, "middle": 1.0})]
    found = {}
    for which in ("lowest", "best"):
        one = Ground(world.documents, records, world.index, world.query_vectors, world.document_vectors, False, {})
        mine(tmp_path / which, one, MineSettings(margin=0.05, positive=which))
        found[which] = next(read_tables(tmp_path / which))[1]["document_ids"].to_pylist()
    assert found == {"lowest": [["far"]], "best": [["near", "far"]]}


# ------------------------------------------------------------------------------------------------------------ the audit


def test_scores_add_up() -> None:
    score_P = np.random.default_rng(0).normal(0.3, 0.2, size=5000).astype(np.float32)
    whole, parts = Scores(0.01), Scores(0.01)
    whole.add(score_P)
    for some in np.array_split(score_P, 7):
        one = Scores(0.01)
        one.add(some)
        parts.merge(one)
    told = parts.summary(histogram=True)
    assert told is not None and told["histogram"] == whole.summary(histogram=True)["histogram"]  # type: ignore[index]
    assert told["count"] == 5000 == sum(count for _, count in told["histogram"])
    assert told["mean"] == pytest.approx(float(score_P.mean()), abs=1e-6)
    for name, share in (("p5", 0.05), ("median", 0.5), ("p95", 0.95)):
        assert told[name] == pytest.approx(float(np.quantile(score_P, share)), abs=0.01)
    assert (told["min"], told["max"]) == (float(score_P.min()), float(score_P.max()))
    assert Scores(0.01).summary() is None


def test_bins_fit_the_scores() -> None:
    assert [bin_width(np.float32(scores)) for scores in ([], [0.3, -1.0], [3.0], [-250.0])] == [0.01, 0.01, 0.1, 10.0]


def test_counts_survive_a_part_s_entry() -> None:
    counts = Counts(0.01, without=[3], samples=[{"query": 1, "positives": [[0, 0.5]], "negatives": []}])
    counts.language("en").negatives.add(np.float32([0.5, -0.25, 0.5]))
    counts.fallen["margin"] = 4
    again = Counts.from_json(json.loads(json.dumps(counts.to_json())))
    assert again == counts
    again.merge(counts)
    assert again.fallen["margin"] == 8 and again.languages["en"].negatives.bins == {50: 4, -25: 2}
    assert again.without == [3, 3] and len(again.samples) == 2


def test_the_farthest_come_first() -> None:
    def entry(query: int, positive: float, negative: float) -> dict[str, Any]:
        return {"query": query, "positives": [[0, positive]], "negatives": [[1, negative]]}

    found = worst_first([entry(4, 0.5, 0.6), entry(2, 0.5, 0.4), entry(3, 0.1, 0.6), entry(1, 0.0, 0.5)])
    assert [one["query"] for one in found] == [1, 3, 4]


def test_an_audit_of_nothing_can_be_written() -> None:
    world = ground()
    from harness.vectors.mining.audit import audit_of

    audit = audit_of(Counts(0.01), {}, world.records, world.documents)
    assert audit["queries"] == 0 and audit["scores"] == {"positives": None, "negatives": None}
    assert "0 queries" in audit_markdown(audit)
