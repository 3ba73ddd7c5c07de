"""What an operator is answered, whatever workers do or leave undone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest

from learner.config import RunConfig
from learner.instructions import Send
from learner.queries import MOST_ASKED, MOST_OPEN, PATIENCE_SECONDS, Queries
from learner.registry import Registry
from protocol.codec import encode
from protocol.messages import Command, Hello, LogLines, LogRequest, Query, Welcome
from protocol.specs import EnvironmentSpec, PolicySpec, Spaces

OPERATOR = b"operator"


class Desk:
    """A registry with workers 1 to `workers`, and what is asked of it."""

    def __init__(self, workers: int = 2) -> None:
        environment = EnvironmentSpec("toy", {}, Spaces(4, "float32", 2, False, 100))
        welcome = Welcome("run", 1, 1, "async", environment, PolicySpec(4, 2), 1.0, 60.0)
        self.registry = Registry(RunConfig(), welcome, "0.1.0", 0.0)
        self.queries = Queries(self.registry, lambda now: {"rejected": {}})
        for number in range(1, workers + 1):
            label = f"label-{number}"
            hello = Hello(f"session-{number}", "host", number, 1, "0.1.0", label=label)
            self.registry.membership.hello(hello, 0.0)
        self.registry.tick(0.0, True)

    def ask(self, message: Query | Command | LogRequest, now: float = 0.0) -> None:
        self.queries.take_in(message, OPERATOR, now)

    def answer(self, now: float = 0.0) -> Mapping[str, Any]:
        ((asker, report),) = self.queries.take(now)
        assert asker == OPERATOR
        encode(report)
        return report.content

    def asked(self) -> dict[str, LogRequest]:
        """Return the requests that workers have been sent."""
        sent = self.registry.tick(0.0, True)
        return {
            one.session: one.message
            for one in sent
            if isinstance(one, Send) and isinstance(one.message, LogRequest)
        }


def test_a_command_tells_whom_it_reached_and_whom_it_did_not() -> None:
    desk = Desk()
    desk.ask(Command("drain", ("label-2", "nobody")))
    answer = desk.answer()
    assert answer["matched"] == ["label-2 (host:2)"] and answer["workers"] == [2]
    assert answer["unknown"] == ["nobody"]
    assert [worker.desired for worker in desk.registry.status(0.0).workers] == ["play", "drain"]


def test_logs_come_together_once_all_have_answered() -> None:
    desk = Desk()
    desk.ask(LogRequest(5, ("host",)))
    asked = desk.asked()
    assert set(asked) == {"session-1", "session-2"} and asked["session-1"].lines == 5
    number = asked["session-1"].number
    desk.queries.log_lines(LogLines("session-1", number, ("one", "two\x1b[2J")))
    assert desk.queries.take(0.1) == []
    desk.queries.log_lines(LogLines("session-2", number, ()))
    logs = desk.answer(0.2)["logs"]
    assert logs == [
        {"worker": "label-1 (host:1)", "lines": ["one", "two [2J"]},
        {"worker": "label-2 (host:2)", "lines": []},
    ]
    desk.queries.log_lines(LogLines("session-2", number, ("late",)))
    assert desk.queries.take(9.0) == []


def test_a_worker_that_does_not_answer_is_said_so() -> None:
    desk = Desk()
    desk.ask(LogRequest(5, ("label-1", "gone-7")), 10.0)
    assert desk.queries.take(10.0 + PATIENCE_SECONDS / 2) == []
    answer = desk.answer(10.0 + PATIENCE_SECONDS)
    assert answer["logs"] == [{"worker": "label-1 (host:1)", "lines": None}]
    assert answer["unknown"] == ["gone-7"]


def test_nobody_answers_for_another() -> None:
    desk = Desk()
    desk.ask(LogRequest(5, ("label-1",)))
    number = desk.asked()["session-1"].number
    desk.queries.log_lines(LogLines("session-2", number, ("forged",)))
    assert desk.answer(PATIENCE_SECONDS)["logs"][0]["lines"] is None


def test_however_much_workers_say_the_answer_fits_in_a_message() -> None:
    desk = Desk(MOST_ASKED + 5)
    desk.ask(LogRequest(10**9))
    asked = desk.asked()
    assert len(asked) == MOST_ASKED
    for session, request in asked.items():
        assert request.lines == 1000
        desk.queries.log_lines(LogLines(session, request.number, ("\U0001f600" * 3000,) * 60))
    answer = desk.answer()
    assert len(answer["not_asked"]) == 5
    assert all(0 < len(log["lines"]) < 60 for log in answer["logs"])


def test_many_requests_at_once_do_not_pile_up() -> None:
    desk = Desk(1)
    for _ in range(MOST_OPEN):
        desk.ask(LogRequest(5))
    desk.ask(LogRequest(5))
    assert len(desk.asked()) == 1
    assert [report.content["not_asked"] for _, report in desk.queries.take(0.0)] == [["label-1 (host:1)"]]
    assert len(desk.queries.take(PATIENCE_SECONDS)) == MOST_OPEN


@pytest.mark.parametrize("targets", [("x" * 60_000,) * 3, tuple(str(number) for number in range(30_000))])
def test_the_answer_to_names_without_end_fits_in_a_message(targets: tuple[str, ...]) -> None:
    desk = Desk()
    desk.ask(Command("pause", targets))
    desk.answer()
    desk.ask(LogRequest(5, targets))
    desk.answer()
