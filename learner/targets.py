"""Which workers an operator means: a target is a label, a host:pid, a host or a pool."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from learner.sessions import Session

_MEANINGS: tuple[Callable[[Session], str], ...] = (
    lambda session: session.hello.label,
    lambda session: f"{session.hello.host}:{session.hello.pid}",
    lambda session: session.hello.host,
    lambda session: _short(session.hello.host),
    lambda session: session.hello.pool,
)
"""From the narrowest to the widest; the first that somebody answers to is meant."""


def named(sessions: Iterable[Session], targets: Sequence[str]) -> tuple[list[Session], list[str]]:
    """Return the sessions that the targets name, each once, and the targets that name none.

    Without targets, all are meant. A host may be called by its name up to the first dot.
    """
    sessions = list(sessions)
    if not targets:
        return sessions, []
    tables: list[dict[str, list[Session]]] = [{} for _ in _MEANINGS]
    for session in sessions:
        for table, meaning in zip(tables, _MEANINGS, strict=True):
            if name := meaning(session):
                table.setdefault(name, []).append(session)
    found: dict[int, Session] = {}
    unknown = []
    for target in targets:
        meant = next((table[target] for table in tables if target in table), [])
        found |= {id(session): session for session in meant}
        if not meant:
            unknown.append(target)
    return list(found.values()), unknown


def _short(host: str) -> str:
    name = host.partition(".")[0]
    return "" if name.isdecimal() else name
