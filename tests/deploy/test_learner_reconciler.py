"""What is done so that the learner becomes as it is wanted."""

from __future__ import annotations

from deploy.fleet.learner_reconciler import DEATHS_IN_VAIN, STOP_SECONDS, LearnerReconciler


def test_a_learner_is_started_again_with_growing_pauses_until_it_is_hopeless() -> None:
    state, begun, now = LearnerReconciler(), [], 0.0
    for _ in range(1000):
        if state.step("config", 1, False, False, now) == "start":
            begun.append(now)
        now += 0.1
    assert len(begun) == DEATHS_IN_VAIN
    assert state.failed
    assert begun[1] - begun[0] < begun[2] - begun[1] < begun[3] - begun[2]
    assert state.step("config", 2, False, False, now) == "start", "a command forgives"


def test_a_learner_that_answered_is_never_hopeless() -> None:
    state, now = LearnerReconciler(), 0.0
    for _ in range(3 * DEATHS_IN_VAIN):
        begun = False
        for _ in range(100):
            begun |= state.step("config", 1, False, False, now) == "start"
            now += 0.1
            if begun:
                break
        assert begun
        assert state.step("config", 1, True, True, now + 5) == ""
        now += 5


def test_a_learner_with_another_configuration_is_asked_to_end_and_begun_anew() -> None:
    state = LearnerReconciler("old")
    assert state.step("old", 1, True, True, 0.0) == ""
    assert state.step("new", 2, True, True, 1.0) == "stop"
    assert state.step("new", 2, True, True, 2.0) == ""
    assert state.step("new", 2, False, False, 3.0) == "start"
    assert state.step("new", 2, True, True, 4.0) == ""


def test_a_learner_that_lives_but_never_answers_is_hopeless_in_the_end() -> None:
    state, now, begun, alive = LearnerReconciler(), 0.0, 0, False
    while now < 1000 and not state.failed:
        started = state.step("config", 1, alive, False, now) == "start"
        begun, alive, now = begun + started, started, now + 5
    assert begun == DEATHS_IN_VAIN


def test_a_learner_that_was_asked_to_end_has_not_failed() -> None:
    state, now = LearnerReconciler("0"), 0.0
    for number in range(1, 3 * DEATHS_IN_VAIN):
        assert state.step(f"{number}", 1, True, False, now) == "stop"
        assert state.step(f"{number}", 1, False, False, now + 1) == "start"
        now += 2


def test_a_learner_that_does_not_end_is_killed_and_not_begun_where_none_is_wanted() -> None:
    state = LearnerReconciler("config")
    assert state.step(None, 1, True, True, 0.0) == "stop"
    assert state.step(None, 1, True, True, STOP_SECONDS + 1) == "kill"
    assert state.step(None, 1, False, False, STOP_SECONDS + 2) == ""
