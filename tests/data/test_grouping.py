"""Groups and the splits made from them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from harness.data.grouping import GROUP, ID, PARALLEL, Name, choose_groups, join_groups, stable_fraction


def test_fractions_are_stable_and_salted() -> None:
    assert stable_fraction("a") == 0xCA978112CA1BBDCA / 2**64, "where sha256 of 'a' begins"
    fractions = [stable_fraction(str(number)) for number in range(2000)]
    assert all(0 <= fraction < 1 for fraction in fractions)
    assert abs(sum(fraction < 0.6 for fraction in fractions) / 2000 - 0.6) < 0.04
    late = [str(number) for number in range(2000) if 0.6 <= fractions[number] < 0.75]
    assert 0.4 < sum(stable_fraction(label, "select") < 0.5 for label in late) / len(late) < 0.6


@given(
    st.sets(st.text(max_size=3), max_size=20),
    st.floats(0.01, 0.99),
    st.randoms(use_true_random=False),
)
def test_choice_depends_on_the_set_alone(labels: set[str], share: float, random: object) -> None:
    order = sorted(labels)
    random.shuffle(order)  # type: ignore[attr-defined]
    chosen = choose_groups(order, share, "salt")
    assert chosen == choose_groups(labels, share, "salt") and chosen <= labels
    if len(labels) > 1:
        assert 0 < len(chosen) < len(labels)
    if len(labels) > 2:
        assert 2 <= len(choose_groups(order, share, "salt", least=2)) < len(labels)


def test_all_or_none() -> None:
    assert choose_groups("abc", 1.0, "s") == set("abc")
    assert choose_groups("abc", 0.0, "s") == set()


@given(st.dictionaries(st.integers(0, 30).map(str), st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=3)))
def test_queries_that_share_a_name_are_joined(members: dict[str, list[str]]) -> None:
    expected = {query: set(names) for query, names in members.items()}
    moved = True
    while moved:  # close the sets by brute force
        moved = False
        for names in expected.values():
            for others in expected.values():
                if names & others and names != others:
                    names |= others
                    others |= names
                    moved = True
    named = {query: [Name(name, GROUP) for name in names] for query, names in members.items()}
    assert join_groups(named) == {query: min(names) for query, names in expected.items()}


def test_a_groups_name_does_not_depend_on_what_it_shares_nothing_with() -> None:
    parallel = {f"q{number}": [Name(f"p{number // 2}", PARALLEL)] for number in range(6)}
    alone = join_groups(parallel)
    assert sorted(set(alone.values())) == ["p0", "p1", "p2"]
    joined = join_groups(parallel | {"q0": [Name("x", GROUP), Name("p0", PARALLEL)], "q9": [Name("g", GROUP)]})
    assert {query: group for query, group in joined.items() if query != "q9"} == alone and joined["q9"] == "g"


def test_names_of_two_kinds_are_two_groups_whatever_their_texts() -> None:
    members = {"a": [Name("1", PARALLEL)], "b": [Name("1", GROUP)], "c": [Name("1", ID)],
               "d": [Name("parallel_id 1", GROUP)], "e": [Name("2", PARALLEL)], "f": [Name("1", GROUP)]}  # fmt: skip
    expected = {"a": "parallel_id parallel_id 1", "b": "1", "c": "id 1", "d": "parallel_id 1", "e": "2", "f": "1"}
    for order in (members, dict(reversed(members.items()))):
        assert join_groups(order) == expected
