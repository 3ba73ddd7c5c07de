"""Whom an operator means."""

from __future__ import annotations

from learner.sessions import Session
from learner.targets import named
from protocol.messages import Hello


def session(host: str, pid: int, pool: str = "", label: str = "") -> Session:
    return Session(Hello(f"{host}-{pid}", host, pid, 1, "", pool=pool, label=label), 0.0)


FLEET = [
    session("cpu01.lab", 7, "lab", "lab-1"),
    session("cpu01.lab", 8, "lab", "lab-2"),
    session("cpu02.lab", 7, "spot", "spot-1"),
    session("10.0.0.1", 9),
    session("lab", 5, "spot"),
]


def pids(*targets: str) -> list[tuple[str, int]]:
    matched, unknown = named(FLEET, targets)
    assert not unknown
    return [(found.hello.host, found.hello.pid) for found in matched]


def test_each_kind_of_name_is_understood() -> None:
    assert pids("lab-2") == [("cpu01.lab", 8)]
    assert pids("cpu01.lab:7") == [("cpu01.lab", 7)]
    assert pids("cpu01.lab") == [("cpu01.lab", 7), ("cpu01.lab", 8)]
    assert pids("cpu02") == [("cpu02.lab", 7)]
    assert pids("spot") == [("cpu02.lab", 7), ("lab", 5)]


def test_the_narrowest_meaning_counts() -> None:
    """`lab` is a host and a pool."""
    assert pids("lab") == [("lab", 5)]


def test_a_worker_named_twice_is_meant_once_and_nobody_named_means_all() -> None:
    assert pids("cpu01", "lab-1", "cpu01.lab:7") == [("cpu01.lab", 7), ("cpu01.lab", 8)]
    assert len(pids()) == len(FLEET)


def test_names_of_nobody_are_told_and_empty_ones_match_no_unnamed_worker() -> None:
    matched, unknown = named(FLEET, ["cpu09", "", "10", "lab-1"])
    assert unknown == ["cpu09", "", "10"]
    assert [found.hello.label for found in matched] == ["lab-1"]
