"""Hosts by range: `cpu[01-16]`, `cpu[01-03,07]`, `rack[1-2]-node[1-4]`, as Slurm writes them."""

from __future__ import annotations

import re
from collections.abc import Iterable

from protocol.errors import UserError

MOST_HOSTS = 10_000
_GROUP = re.compile(r"\[([^\[\]]*)\]")
_PART = re.compile(r"(\d+)(?:-(\d+))?")


def expand_hosts(patterns: Iterable[str]) -> tuple[str, ...]:
    """Return the hosts of all patterns, in order, each once. Raises UserError for a pattern that is none."""
    hosts: dict[str, None] = {}
    for pattern in patterns:
        hosts.update(dict.fromkeys(_expand(pattern, pattern)))
        if len(hosts) > MOST_HOSTS:
            raise UserError(f"{pattern!r} makes more than {MOST_HOSTS:,} hosts")
    return tuple(hosts)


def _expand(text: str, pattern: str) -> list[str]:
    group = _GROUP.search(text)
    if not group:
        if not re.fullmatch(r"[^\s\[\],]+", text) or text.startswith("-"):
            raise UserError(f"{pattern!r} is no host: give a name such as cpu01, or a range, cpu[01-16]")
        return [text]
    tails = _expand(text[group.end() :], pattern) if text[group.end() :] else [""]
    heads = [text[: group.start()] + number for number in _numbers(group[1], pattern)]
    if len(heads) * len(tails) > MOST_HOSTS:
        raise UserError(f"{pattern!r} makes more than {MOST_HOSTS:,} hosts")
    return [head + tail for head in heads for tail in tails]


def _numbers(inside: str, pattern: str) -> list[str]:
    """Return the numbers of 01-03,07, as wide as their first is written."""
    numbers = []
    for part in inside.split(","):
        found = _PART.fullmatch(part.strip())
        first, last = (found[1], found[2] or found[1]) if found else ("1", "0")
        if int(first) > int(last) or int(last) - int(first) >= MOST_HOSTS:
            raise UserError(f"{pattern!r} has no such range: {part!r}; write [01-16] or [01-03,07]")
        numbers += [str(number).zfill(len(first)) for number in range(int(first), int(last) + 1)]
    return numbers
