import io

import pytest
from rich.console import Console

from deploy.progress import EvaluationDisplay
from deploy.screen import Screen


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("time.monotonic", clock)
    return clock


def shown(screen: Screen, text: str, *, at_once: bool = False) -> None:
    screen.renew(lambda: f"picture {text}", lambda: f"line {text}", at_once=at_once)


def test_elsewhere_than_on_a_terminal_a_line_comes_now_and_then(clock: Clock) -> None:
    output = io.StringIO()
    with Screen(Console(file=output), 5.0) as screen:
        shown(screen, "early")
        shown(screen, "entered", at_once=True)
        clock.now += 4.9
        shown(screen, "soon")
        clock.now += 0.2
        shown(screen, "due")
        screen.say("said")
    assert output.getvalue() == "line entered\nline due\nsaid\n"


@pytest.mark.parametrize("stays", [True, False])
def test_the_newest_picture_stays_on_a_terminal_or_none(stays: bool) -> None:
    output = io.StringIO()
    with Screen(Console(file=output, force_terminal=True, width=40), 5.0, stays=stays) as screen:
        shown(screen, "first", at_once=True)
        shown(screen, "last")  # not due, and still the one that is left
    assert ("picture last" in output.getvalue()) is stays
    assert "line" not in output.getvalue()


def test_the_rate_of_an_evaluation_is_told_of_more_than_a_moment(clock: Clock) -> None:
    output = io.StringIO()
    with EvaluationDisplay("cage2", 10, 1000, Console(file=output)) as display:
        clock.now += 60.0  # the environments are built
        display.ended(100)
        clock.now += 0.001
        display.ended(100)
        assert not output.getvalue()
        clock.now += 10.0
        display.ended(100)
    assert "3 of 10 episodes, 20 steps/s" in output.getvalue()
