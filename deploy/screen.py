"""What long work shows of itself: a picture that is renewed on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self

from rich.console import Console, RenderableType
from rich.live import Live

_REFRESHES_PER_SECOND = 4


class Screen:
    """Shows between `__enter__` and `__exit__`; `stays` says whether the last picture is left there."""

    def __init__(self, console: Console, line_seconds: float, *, stays: bool = False) -> None:
        self._console, self._stays = console, stays
        self._live: Live | None = None
        self._seconds = 1 / _REFRESHES_PER_SECOND if console.is_terminal else line_seconds
        self._shown_at = 0.0
        self._held: Callable[[], RenderableType] | None = None
        """The newest picture, while it is not shown."""

    def __enter__(self) -> Self:
        """Begin to show."""
        self._shown_at = time.monotonic()
        if self._console.is_terminal:
            self._live = Live(
                console=self._console,
                refresh_per_second=_REFRESHES_PER_SECOND,
                transient=not self._stays,
                redirect_stdout=False,
            )
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave the newest picture on the screen, or nothing."""
        if self._live:
            if self._stays and self._held:
                self._live.update(self._held())
            self._live.stop()

    def renew(
        self, picture: Callable[[], RenderableType], line: Callable[[], str], *, at_once: bool = False
    ) -> None:
        """Take a new state; where it is not due it costs next to nothing."""
        now = time.monotonic()
        if now - self._shown_at < self._seconds and not at_once:
            self._held = picture
            return
        self._shown_at, self._held = now, None
        if self._live:
            self._live.update(picture())
        else:
            self.say(line())

    def say(self, text: str) -> None:
        """Print a line, above the picture where there is one."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)
