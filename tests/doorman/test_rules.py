"""Rules: what holds a task back, and what does not."""

from __future__ import annotations

import pytest

from doorman.errors import BadRule
from doorman.load import Load
from doorman.rules import Rule, Rules


def load(*processes: tuple[str, float, float]) -> Load:
    """The load of some processes: (handler, processor, memory)."""
    load = Load()
    for handler, processor, memory in processes:
        load.add(handler, processor, memory)
    return load


def test_without_rules_nothing_is_held_back():
    assert Rules().holds_back("a", load(*[("a", 100.0, 100.0)] * 50)) is None


def test_a_rule_without_a_bound_bounds_nothing():
    assert Rule(minimum_processor_load=0).holds_back("a", load(("a", 50.0, 0.0))) is None


def test_a_bound_without_bands_always_holds():
    rule = Rule(processes=2)
    assert rule.holds_back("a", load(("b", 0.0, 0.0))) is None
    assert rule.holds_back("a", load(("b", 0.0, 0.0), ("c", 0.0, 0.0))) == "2 of 2 processes run"


def test_a_bound_of_none_at_all_holds_the_first_back_too():
    assert Rule(processes=0).holds_back("a", load()) == "0 of 0 processes run"


@pytest.mark.parametrize(
    ("now", "held"), [(0.0, True), (50.0, True), (50.9, True), (51.0, False), (100.0, False), (130.0, False)]
)
def test_a_band_holds_within_its_ends_in_whole_per_cent(now, held):
    rule = Rule(processes=1, minimum_processor_load=0, maximum_processor_load=50)
    assert (rule.holds_back("a", load(("b", now, 0.0))) is not None) is held


@pytest.mark.parametrize(("now", "held"), [(12.4, False), (12.5, True), (14.9, True), (15.0, False)])
def test_a_band_may_begin_between_two_whole_per_cent(now, held):
    rule = Rule(processes=1, minimum_processor_load=12.5, maximum_processor_load=14.5)
    assert (rule.holds_back("a", load(("b", now, 0.0))) is not None) is held


def test_more_than_the_whole_machine_is_within_a_band_up_to_100():
    """As when each of many that have just started is expected to take a core."""
    rule = Rule(processes=5, minimum_processor_load=50, maximum_processor_load=100)
    assert rule.holds_back("a", load(*[("b", 50.0, 0.0)] * 5)) == (
        "5 of 5 processes run while processor load is 100 % (50 to 100 %)"
    )


def test_neighbouring_bands_leave_no_gap():
    rules = Rules(
        [
            Rule(processes=1, minimum_processor_load=0, maximum_processor_load=50),
            Rule(processes=1, minimum_processor_load=51, maximum_processor_load=75),
            Rule(processes=1, minimum_processor_load=76),
        ]
    )
    gaps = [now / 10 for now in range(1001) if rules.holds_back("a", load(("b", now / 10, 0.0))) is None]
    assert gaps == []


@pytest.mark.parametrize(
    ("band", "held_at", "free_at"),
    [({"minimum_processor_load": 60}, 60.0, 59.0), ({"maximum_processor_load": 60}, 60.0, 61.0)],
)
def test_a_band_with_one_end_is_open_at_the_other(band, held_at, free_at):
    rule = Rule(processes=1, **band)
    assert rule.holds_back("a", load(("b", held_at, 0.0)))
    assert rule.holds_back("a", load(("b", free_at, 0.0))) is None


def test_a_rule_holds_while_any_of_its_bands_does():
    rule = Rule(processes=1, minimum_processor_load=90, minimum_memory_load=50)
    assert "memory load is 60 %" in str(rule.holds_back("a", load(("b", 0.0, 60.0))))
    assert "processor load is 95 %" in str(rule.holds_back("a", load(("b", 95.0, 0.0))))
    assert rule.holds_back("a", load(("b", 0.0, 0.0))) is None


def test_loads_of_several_processes_add_up():
    rule = Rule(processes=2, minimum_processor_load=80)
    assert rule.holds_back("a", load(("b", 40.0, 0.0), ("c", 40.0, 0.0)))
    assert rule.holds_back("a", load(("b", 40.0, 0.0), ("c", 39.0, 0.0))) is None


def test_a_rule_for_a_handler_counts_only_its_tasks_and_binds_only_them():
    rule = Rule(processes=1, handler="a")
    assert rule.holds_back("a", load(("b", 0.0, 0.0), ("b", 0.0, 0.0))) is None
    assert rule.holds_back("a", load(("a", 0.0, 0.0)))
    assert rule.holds_back("b", load(("a", 0.0, 0.0))) is None


def test_a_rule_for_a_handler_may_look_at_the_load_of_all():
    rule = Rule(processes=1, handler="a", minimum_processor_load=50)
    assert rule.holds_back("a", load(("b", 90.0, 0.0))) is None
    assert rule.holds_back("a", load(("b", 90.0, 0.0), ("a", 5.0, 0.0)))
    assert rule.holds_back("a", load(("b", 9.0, 0.0), ("a", 5.0, 0.0))) is None


def test_what_holds_back_is_told_with_figures():
    now = load(("a", 20.7, 1.0), ("a", 10.0, 2.0), ("b", 0.0, 70.0))
    told = [
        ({"processes": 3}, "3 of 3 processes run"),
        ({"processes": 2, "handler": "a"}, "2 of 2 processes of handler 'a' run"),
        (
            {"processes": 1, "minimum_processor_load": 30},
            "3 of 1 processes run while processor load is 30 % (30 % or more)",
        ),
        (
            {"processes": 2, "maximum_memory_load": 80, "handler": "a"},
            "2 of 2 processes of handler 'a' run while memory load is 73 % (0 to 80 %)",
        ),
        (
            {"processes": 2, "minimum_sibling_memory_load": 2.5, "maximum_sibling_memory_load": 5},
            "2 of 2 siblings run while their memory load is 3 % (2.5 to 5 %)",
        ),
    ]
    assert [Rule(**rule).holds_back("a", now) for rule, _ in told] == [words for _, words in told]


def test_how_much_of_a_load_is_only_expected_is_told():
    now = load(("a", 30.0, 0.0))
    now.add("a", 50.0, 0.0, measured=False)
    assert Rule(processes=1, minimum_sibling_processor_load=60).holds_back("a", now) == (
        "2 of 1 siblings run while their processor load is 80 %, "
        "counting a busy core for each of 1 not measured yet (60 % or more)"
    )


@pytest.mark.parametrize("kind", ["processor", "memory"])
def test_a_sibling_band_looks_at_siblings_and_counts_only_them(kind):
    rule = Rule(processes=1, **{f"minimum_sibling_{kind}_load": 30})
    assert rule.holds_back("a", load(("b", 90.0, 90.0), ("a", 10.0, 10.0))) is None
    assert "siblings" in str(rule.holds_back("a", load(("a", 30.0, 30.0))))


def test_any_rule_that_holds_back_is_enough():
    rules = Rules([Rule(processes=9), Rule(processes=1)])
    assert rules.holds_back("a", load(("a", 0.0, 0.0))) == "1 of 1 processes run"


def test_rules_come_and_go():
    rules, rule = Rules(), Rule(processes=0)
    rules.add(rule)
    assert rules.holds_back("a", load())
    assert len(rules) == len(list(rules)) == 1
    assert rules.remove(Rule(processes=0))  # an equal one
    assert not rules.remove(rule)
    assert rules.holds_back("a", load()) is None


def test_only_rules_are_rules():
    with pytest.raises(TypeError, match="not a rule"):
        Rules().add({"processes": 1})


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"processes": -1}, "processes"),
        ({"processes": 1.5}, "processes"),
        ({"minimum_processor_load": float("nan")}, "minimum_processor_load"),
        ({"minimum_memory_load": -1}, "minimum_memory_load"),
        ({"maximum_sibling_processor_load": 101}, "maximum_sibling_processor_load"),
        ({"minimum_processor_load": 60, "maximum_processor_load": 50}, "60 is above maximum_processor_load 50"),
    ],
)
def test_a_rule_that_contradicts_itself_is_refused(rule, message):
    with pytest.raises(BadRule, match=message):
        Rule(**rule)


def test_by_load_says_whether_the_load_matters():
    assert not Rules([Rule(processes=1)]).by_load
    assert Rules([Rule(processes=1), Rule(processes=1, minimum_sibling_memory_load=0)]).by_load
