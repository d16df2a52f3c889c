"""Faults: rules are read strictly, hit what they name, and hit the same in every run."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runpod_emulator.faults import (
    ACTIONS,
    VALUES,
    FaultAction,
    FaultPlan,
    FaultPoint,
    FaultRule,
    FaultTally,
    InvalidFault,
    parse_rule,
)

DROP = FaultRule(id="drop", at=FaultPoint.JOB_DONE, action=FaultAction.DROP)
SOMETIMES = replace(DROP, id="sometimes", probability=0.5)


def hits(rule, num_passes, seed=0, others=()):
    """The numbers of the passes, from 0, that a rule hits."""
    plan = FaultPlan(seed)
    for each in (*others, rule):
        plan.add(each)
    return [n for n in range(num_passes) if rule in plan.select(rule.at, endpoint_id="e")]


def test_the_shortest_rule_always_hits_and_is_named_after_itself():
    rule = parse_rule({"at": "job-done", "action": "drop"})
    assert rule == replace(DROP, id="job-done-drop")
    assert hits(rule, 3) == [0, 1, 2]


def test_a_full_rule_is_read():
    raw = {
        "id": "storm",
        "at": "status",
        "action": "status",
        "value": 503,
        "probability": 0.25,
        "count": 3,
        "after": 2,
        "every": 4,
        "endpoint_id": "e",
        "worker_id": "w",
        "job_id": "j",
    }
    assert parse_rule(raw) == FaultRule(
        id="storm",
        at=FaultPoint.STATUS,
        action=FaultAction.STATUS,
        value=503,
        probability=0.25,
        count=3,
        after=2,
        every=4,
        endpoint_id="e",
        worker_id="w",
        job_id="j",
    )


def test_null_is_as_if_absent():
    raw = dict.fromkeys(("id", "value", "probability", "count", "after", "every", "job_id"))
    assert parse_rule(raw | {"at": "job-done", "action": "drop"}).id == "job-done-drop"


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        ([], "fault: expected a JSON object"),
        ({"where": "ping"}, "field: expected id, at, action, value, "),
        ({}, "at: expected cancel, health, job-done, "),
        ({"at": "job-don"}, "at: expected cancel, "),
        ({"at": ["ping"]}, r"at: expected cancel, "),
        (
            {"at": "ping", "action": "kill"},
            "action: expected delay, drop, drop-reply, slow, status (at ping)",
        ),
        (
            {"at": "job-taken", "action": "throttle"},
            "action: expected delay, freeze, kill, spot (at job-taken)",
        ),
        ({"value": 1}, "value: expected none, since drop takes no value"),
        ({"action": "delay"}, "value: expected seconds, 0 to 86400"),
        ({"action": "delay", "value": "1"}, "value: expected seconds, 0 to 86400"),
        ({"action": "delay", "value": float("nan")}, "value: expected seconds"),
        ({"action": "delay", "value": True}, "value: expected seconds"),
        ({"action": "delay", "value": -1}, "value: expected seconds"),
        ({"action": "delay", "value": 10**400}, "value: expected seconds"),
        ({"action": "status", "value": 200.5}, "value: expected an HTTP status, 200 to "),
        ({"action": "status", "value": 99}, "value: expected an HTTP status, 200 to 599"),
        ({"action": "slow", "value": 0}, "value: expected bytes per second of the answer"),
        ({"probability": 1.5}, "probability: expected a number, 0 to 1"),
        ({"count": 0}, "count: expected a whole number, 1 to 1000000000"),
        ({"after": -1}, "after: expected a whole number, 0 to "),
        ({"every": 0}, "every: expected a whole number, 1 to "),
        ({"every": 1.5}, "every: expected a whole number, 1 to "),
        ({"id": 7}, "id: expected a text that is not empty"),
        ({"job_id": ""}, "job_id: expected a text that is not empty"),
    ],
)
def test_a_wrong_rule_is_refused_by_field_value_and_what_is_expected(raw, message):
    is_whole = isinstance(raw, list) or not raw or "at" in raw or "where" in raw
    with pytest.raises(InvalidFault) as caught:
        parse_rule(raw if is_whole else {"at": "job-done", "action": "drop"} | raw)
    assert str(caught.value).startswith(message)
    assert ", got " in str(caught.value)
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("at", FaultPoint)
@pytest.mark.parametrize("action", FaultAction)
def test_a_rule_is_accepted_exactly_where_its_action_fits(at, action):
    raw = {"at": at, "action": action} | ({"value": 200} if action in VALUES else {})
    if action in ACTIONS[at]:
        assert parse_rule(raw).action is action
    else:
        with pytest.raises(InvalidFault, match=rf"\(at {at}\), got"):
            parse_rule(raw)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, [0, 1, 2, 3, 4, 5, 6, 7]),
        ({"count": 3}, [0, 1, 2]),
        ({"after": 5}, [5, 6, 7]),
        ({"every": 3}, [0, 3, 6]),
        ({"after": 1, "every": 3, "count": 2}, [1, 4]),
        ({"probability": 0.0}, []),
    ],
)
def test_counting_says_which_passes_are_hit(fields, expected):
    assert hits(replace(DROP, **fields), 8) == expected


def test_the_count_is_of_hits_and_not_of_chances():
    assert len(hits(replace(SOMETIMES, count=10), 200)) == 10


@given(seed=st.integers(), probability=st.floats(0, 1))
def test_a_seed_repeats_its_run(seed, probability):
    rule = replace(DROP, probability=probability)
    assert hits(rule, 20, seed) == hits(rule, 20, seed)


def test_another_seed_or_id_is_another_run():
    run = hits(SOMETIMES, 100)
    assert run != hits(SOMETIMES, 100, seed=1)
    assert run != hits(replace(SOMETIMES, id="other"), 100)
    assert 25 < len(run) < 75


def test_a_further_rule_changes_nothing_for_the_others():
    others = (DROP, replace(SOMETIMES, id="other"))
    assert hits(SOMETIMES, 100, others=others) == hits(SOMETIMES, 100)


def test_rules_that_hit_together_come_in_the_order_of_the_plan():
    plan = FaultPlan(0)
    first = FaultRule(id="z", at=FaultPoint.JOB_TAKEN, action=FaultAction.DELAY, value=1.0)
    then = FaultRule(id="a", at=FaultPoint.JOB_TAKEN, action=FaultAction.KILL)
    plan.add(first)
    plan.add(then)
    assert plan.select(FaultPoint.JOB_TAKEN, endpoint_id="e") == (first, then)


@pytest.mark.parametrize("name", ["endpoint_id", "worker_id", "job_id"])
def test_a_filter_lets_others_pass_uncounted(name):
    here = {"endpoint_id": "e", "worker_id": "w", "job_id": "j"}
    rule = parse_rule({"at": "job-done", "action": "drop", name: here[name]})
    plan = FaultPlan(0)
    plan.add(rule)
    assert plan.select(DROP.at, **here | {name: "another"}) == ()
    assert plan.select(FaultPoint.PING, **here) == ()
    assert plan.select(DROP.at, **here) == (rule,)
    assert plan.rules == (FaultTally(rule=rule, passes=1, hits=1),)


def test_a_filtered_rule_does_not_hit_where_the_worker_is_unknown():
    plan = FaultPlan(0)
    plan.add(replace(DROP, worker_id="w"))
    assert plan.select(DROP.at, endpoint_id="e") == ()


def test_passes_and_hits_are_counted():
    rule = replace(DROP, every=2)
    plan = FaultPlan(0)
    plan.add(rule)
    for _ in range(5):
        plan.select(rule.at, endpoint_id="e")
    assert plan.rules == (FaultTally(rule=rule, passes=5, hits=3),)


def test_an_id_can_be_used_once_and_again_after_its_removal():
    plan = FaultPlan(0)
    plan.add(DROP)
    with pytest.raises(InvalidFault, match="id: expected any but those in use: drop, got 'drop'"):
        plan.add(replace(DROP, action=FaultAction.DROP_REPLY))
    assert plan.remove("drop")
    assert not plan.remove("drop")
    plan.add(DROP)
    assert plan.rules == (FaultTally(rule=DROP, passes=0, hits=0),)


def test_a_cleared_plan_hits_nothing():
    plan = FaultPlan(0)
    plan.add(DROP)
    plan.clear()
    assert plan.select(DROP.at, endpoint_id="e") == ()
    assert plan.rules == ()
