"""Evaluate episodes asked for under exactly one version, until all of a request are here.

Their tickets stand outside the gate, under a cap of their own while train tickets are still to be issued.
"""

from __future__ import annotations

from dataclasses import dataclass

from learner.book import Book
from protocol.messages import Episode

EVALUATION_CAP = 64
"""Evaluate tickets outstanding at most while train tickets are still to be issued."""


@dataclass(slots=True)
class EvaluationRequest:
    """Evaluate tickets [start, stop), all to be played under exactly this version."""

    version: int
    start: int
    stop: int
    missing: int
    """Tickets neither received nor discarded."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """The result of one request: its episodes by ticket; a discarded one is absent."""

    version: int
    start: int
    stop: int
    episodes: tuple[Episode, ...]


class EvaluationRequests:
    """The requests whose results were not taken, in order; their tickets are those of `book`."""

    def __init__(self, book: Book, cap: int) -> None:
        self._book, self._cap = book, cap
        self.requests: list[EvaluationRequest] = []
        self._episodes: dict[int, Episode] = {}

    def add(self, version: int, episodes: int) -> range:
        """Ask for fresh episodes under exactly this version; return their evaluate numbers."""
        start = self._planned()
        self.requests.append(EvaluationRequest(version, start, start + episodes, episodes))
        return range(start, start + episodes)

    def version_of(self, number: int) -> int:
        """Return the version that an issued ticket is to be played under."""
        return next(r.version for r in self.requests if r.start <= number < r.stop)

    def versions(self) -> set[int]:
        """Return the versions asked for."""
        return {request.version for request in self.requests}

    def room(self, train_is_issued: bool) -> int:
        """Return how many tickets could be issued now; the cap ends once all train tickets are."""
        planned = self._planned() - self._book.account.issued
        if train_is_issued:
            return planned
        playing = len(self._book.open) - len(self._episodes)
        return max(0, min(planned, self._cap - playing))

    def receive(self, episode: Episode) -> None:
        """Keep the first copy of an episode for its request."""
        self._episodes[episode.ticket.number] = episode
        self.settle(episode.ticket.number)

    def settle(self, number: int) -> None:
        """Count a ticket that is received or discarded towards its request."""
        for request in self.requests:
            request.missing -= request.start <= number < request.stop

    def take(self) -> Evaluation | None:
        """Return a finished evaluation, None if there is none; its tickets are consumed herewith."""
        done = next((request for request in self.requests if request.missing == 0), None)
        if done is None:
            return None
        numbers = [number for number in range(done.start, done.stop) if number in self._episodes]
        self._book.consume(numbers)
        self.requests.remove(done)
        episodes = tuple(self._episodes.pop(number) for number in numbers)
        return Evaluation(done.version, done.start, done.stop, episodes)

    def _planned(self) -> int:
        return max([self._book.account.issued, *(request.stop for request in self.requests)])
