"""How busy the trainer is and how many slots play, over a sliding window: what autoscaling decides by."""

from __future__ import annotations

from collections import deque
from dataclasses import asdict, dataclass
from typing import Any

WINDOW_SECONDS, WINDOW_BATCHES = 30.0, 4
"""The window is the longer of these; it never begins before the wait for the first batch."""
LONGEST_SECONDS = 1800.0
BUCKET_SECONDS = 1.0


@dataclass(frozen=True, slots=True)
class Load:
    """The figures of one window, which ends now.

    `slots`, of ready workers that shall play, and `slots_busy`, those of them with a ticket to play, are
    means over the window by samples; `slots_busy_most` is the most of any sample. In synchronous mode, where
    the learner deals the slots out itself, they are 0.
    """

    learner_busy: float | None
    """The share of the window in which the trainer had a batch in hand: from the moment it takes a whole
    batch until it asks for the next, so that updating, journalling, publishing and checkpoints count as busy
    and waiting for episodes, those of an evaluation included, does not. None before the first update is
    done: until then nothing says how long one takes."""
    window_seconds: float
    slots: float
    slots_busy: float
    slots_busy_most: int
    slots_now: int
    """Ready at the last sample."""

    def to_plain(self) -> dict[str, Any]:
        """Return MessagePack or JSON values."""
        return asdict(self)


@dataclass(slots=True)
class _Bucket:
    """The samples of a second or so."""

    began: float
    samples: int = 0
    slots: int = 0
    busy: int = 0
    most: int = 0


class LoadWindow:
    """Takes in what the trainer's thread does and what the I/O thread sees; `now` is monotonic, in seconds.

    The trainer's thread calls `waits` and `works`, the I/O thread all else: both only append, at one end.
    """

    def __init__(self) -> None:
        self._phases: deque[tuple[float, bool]] = deque(maxlen=10_000)
        """When the trainer began to wait (False) or to work (True), in turn."""
        self._buckets: deque[_Bucket] = deque()
        self._slots_now = 0

    def waits(self, now: float) -> None:
        """Note that the trainer waits for episodes; again, while it does, is of no effect."""
        self._note(now, False)

    def works(self, now: float) -> None:
        """Note that the trainer has what it waited for."""
        self._note(now, True)

    def sample(self, slots: int, busy: int, now: float) -> None:
        """Note how many slots there are and how many of them have a ticket."""
        if not self._buckets or now >= self._buckets[-1].began + BUCKET_SECONDS:
            self._buckets.append(_Bucket(now))
            while self._buckets[0].began < now - LONGEST_SECONDS:
                self._buckets.popleft()
        bucket, self._slots_now = self._buckets[-1], slots
        bucket.samples += 1
        bucket.slots += slots
        bucket.busy += busy
        bucket.most = max(bucket.most, busy)

    def load(self, now: float) -> Load:
        """Return the figures of the window that ends now."""
        phases = list(self._phases)
        batches = [began for began, works in phases if works]
        since = now - WINDOW_SECONDS
        if len(batches) > WINDOW_BATCHES:
            since = max(min(since, batches[-1 - WINDOW_BATCHES]), now - LONGEST_SECONDS)
        elif phases:
            since = max(phases[0][0], now - LONGEST_SECONDS)
        buckets = [bucket for bucket in self._buckets if bucket.began >= since] or list(self._buckets)[-1:]
        samples = sum(bucket.samples for bucket in buckets) or 1
        return Load(
            learner_busy=_busy(phases, since, now),
            window_seconds=now - since,
            slots=sum(bucket.slots for bucket in buckets) / samples,
            slots_busy=sum(bucket.busy for bucket in buckets) / samples,
            slots_busy_most=max((bucket.most for bucket in buckets), default=0),
            slots_now=self._slots_now,
        )

    def _note(self, now: float, works: bool) -> None:
        if not self._phases or self._phases[-1][1] is not works:
            self._phases.append((now, works))


def _busy(phases: list[tuple[float, bool]], since: float, now: float) -> float | None:
    """Return the share of [since, now] that was work; None before the first update is done."""
    ends = [*[began for began, _ in phases[1:]], now][: len(phases)]
    spans = [(began, end) for (began, works), end in zip(phases, ends, strict=True) if works]
    if not spans or (len(spans) == 1 and phases[-1][1]) or now <= since:
        return None
    return min(1.0, sum(max(0.0, end - max(began, since)) for began, end in spans) / (now - since))
