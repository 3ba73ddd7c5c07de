import signal
from collections.abc import Iterator

import pytest

from deploy import playing
from deploy.playing import noting_interrupts


@pytest.fixture
def heeded() -> Iterator[list[int]]:
    """Give the signals that reach the usual handler."""
    reached: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, frame: reached.append(number))
    yield reached
    signal.signal(signal.SIGINT, before)


def test_the_double_of_a_ctrl_c_is_not_heeded_even_after_the_block(heeded: list[int]) -> None:
    with noting_interrupts() as noted:
        signal.raise_signal(signal.SIGINT)
    signal.raise_signal(signal.SIGINT)
    assert len(noted) == 2 and not heeded


def test_another_ctrl_c_later_is_heeded(heeded: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(playing, "_SAME_WISH_SECONDS", 0.0)
    with noting_interrupts() as noted:
        signal.raise_signal(signal.SIGINT)
    assert len(noted) == 1 and heeded == [signal.SIGINT]


def test_without_a_ctrl_c_all_is_as_before(heeded: list[int]) -> None:
    with noting_interrupts() as noted:
        pass
    signal.raise_signal(signal.SIGINT)
    assert not noted and heeded == [signal.SIGINT]
