"""Reads fleet.toml: checked key by key before anything is started, each mistake told with its line."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal, get_type_hints

from deploy.engines.catalogue import ENGINES, options_class
from deploy.environment import environment_spec
from deploy.fleet.hosts import expand_hosts
from deploy.fleet.learner_process import Place
from deploy.fleet.plan import FleetPlan, PoolKeys, PoolPlan
from deploy.options import settings
from deploy.plain_values import choices, fitted, in_words
from deploy.settings import OPTION_KEYS, Settings, read_toml, resolve
from protocol.errors import UserError
from protocol.keys import PeerKey

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(-[A-Za-z][A-Za-z0-9_]*)*")
"""Of a pool: its workers are NAME-1, NAME-2, ..."""
_NAMED = re.compile(r"[\w.\"'\s-]+")
"""What may stand in brackets or before an equals sign, where a line opens a table or sets a key."""
_DEEPEST = 4
"""More keys than in any path that a mistake is told with."""


def read_fleet_file(file: Path) -> FleetPlan:
    """Read and check. Raises UserError naming the file, the line and the key."""
    try:
        text = file.read_text(encoding="utf-8")
        content = tomllib.loads(text)
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{file} is not valid TOML: {error}") from error
    except RecursionError:
        raise UserError(f"{file} is nested too deeply") from None
    try:
        return _Reader(file, text).plan(content)
    except RecursionError:
        raise UserError(f"{file} is nested too deeply") from None


class _Reader:
    """A file whose mistakes are told with their line."""

    def __init__(self, file: Path, text: str) -> None:
        self._file, self._lines = file, _key_lines(text)

    def plan(self, content: Mapping[str, Any]) -> FleetPlan:
        for where, text in _texts((), content):
            if "\0" in text:
                raise self._wrong(where, "holds a NUL character, which no name or path may")
        for key in content:
            if key not in ("learner", "pools"):
                raise self._unknown((key,), ("learner", "pools"))
        for key in ("learner", "pools"):
            if not isinstance(content.get(key, {}), dict):
                raise self._wrong((key,), "is no table: write [learner] and [pools.NAME]")
        own, chosen, names_total = self._learner(content.get("learner", {}))
        pools = {pool: self._pool(pool, table) for pool, table in content.get("pools", {}).items()}
        name = chosen.run.name or self._file.stem
        place = Place(own["host"], own["python"], own["ssh_config"])
        return FleetPlan(name, place, own["address"], own["key"], chosen, names_total, pools)

    def _learner(self, table: Mapping[str, Any]) -> tuple[Mapping[str, str], Settings, bool]:
        """Return the fleet's own keys, the learner's settings, and whether its total is named."""
        own = {**asdict(Place()), "address": "", "key": "", "config": ""}
        told: dict[str, Any] = {}
        spelled: dict[str, str] = {}
        mine = {name for name in settings() if name not in ("workers", "slots")}
        for key, value in table.items():
            option = OPTION_KEYS.get(key.replace("-", "_"), key.replace("-", "_"))
            if option in spelled:
                raise self._wrong(("learner", key), f"says again what {spelled[option]} says")
            spelled[option] = key
            if option in own:
                own[option] = self._value(str, value, ("learner", key))
            elif option in mine:
                told[option] = value
            else:
                raise self._unknown(("learner", key), [*own, *mine, *OPTION_KEYS])
        config = self._file.parent / own["config"] if own["config"] else None
        try:
            chosen = resolve(told, config)
            if not own["host"]:
                _refuse_what_no_learner_here_takes(chosen)
        except UserError as error:
            raise self._located(("learner",), str(error), spelled) from error
        if own["address"] and not re.fullmatch(r"\S+:\d{1,5}", own["address"]):
            raise self._wrong(("learner", "address"), f"is {own['address']!r}: give HOST:PORT")
        if self._key(own["key"], ("learner", "key")) == "worker":
            raise self._wrong(
                ("learner", "key"), "is a worker's key: fleet keys new NAME --role operator makes one"
            )
        names_total = "total_episodes" in {**(read_toml(config) if config else {}), **told}
        return own, chosen, names_total

    def _pool(self, name: str, table: Any) -> PoolPlan:
        where = ("pools", name)
        if not _NAME.fullmatch(name) or len(name) > 60:
            raise self._wrong(
                where, "is no name of a pool: use letters, digits and _, and a letter after each -"
            )
        if not isinstance(table, dict):
            raise self._wrong(where, f"is no table: write [pools.{name}]")
        if "engine" not in table:
            raise self._wrong(where, f"names no engine: add engine = {choices(ENGINES)}")
        kind = options_class(self._value(Literal[ENGINES], table["engine"], (*where, "engine")))
        names = {entry.name for entry in fields(kind)} | {entry.name for entry in fields(PoolKeys)}
        told: dict[str, Any] = {}
        for key, value in table.items():
            if (option := key.replace("-", "_")) not in names:
                raise self._unknown((*where, key), names)
            if option in told:
                raise self._wrong((*where, key), "is told twice, once with - and once with _")
            told[option] = value
        if hosts := told.get("hosts"):
            listed = self._value(tuple[str, ...], hosts, (*where, "hosts"))
            try:
                told["hosts"] = list(expand_hosts(listed))
            except UserError as error:
                raise self._wrong((*where, "hosts"), str(error)) from error
        keys = self._made(PoolKeys, told, where)
        self._key(keys.key, (*where, "key"))
        return PoolPlan(keys, self._made(kind, told, where), len(told.get("hosts", ())))

    def _key(self, file: str, where: tuple[str, ...]) -> str:
        """Return whose key a file is, "" of none. Raises UserError where it is no key file."""
        try:
            return PeerKey.read(Path(file).expanduser()).role if file else ""
        except (UserError, RuntimeError) as error:
            raise self._located(where, str(error), {}) from error

    def _made(self, kind: type[Any], table: Mapping[str, Any], where: tuple[str, ...]) -> Any:
        """Return a dataclass made of those keys that are its fields."""
        hints, values = get_type_hints(kind), {}
        for entry in fields(kind):
            if entry.name in table:
                values[entry.name] = self._value(hints[entry.name], table[entry.name], (*where, entry.name))
            elif entry.default is MISSING and entry.default_factory is MISSING:
                raise self._wrong(where, f"lacks the key {entry.name}, which its engine needs")
        try:
            return kind(**values)
        except UserError as error:
            raise self._located(where, str(error), {name: name for name in table}) from error

    def _value(self, hint: Any, value: Any, where: tuple[str, ...]) -> Any:
        try:
            return fitted(hint, value)
        except ValueError:
            raise self._wrong(where, f"is {value!r}: it must be {in_words(hint)}") from None

    def _unknown(self, where: tuple[str, ...], known: Iterable[str]) -> UserError:
        near = get_close_matches(where[-1], sorted(known), n=3)
        mend = f"did you mean {' or '.join(near)}?" if near else "docs/many-hosts.md lists them"
        return self._wrong(where, f"is no key here: {mend}")

    def _wrong(self, where: tuple[str, ...], what: str) -> UserError:
        return UserError(f"{self._at(where)}: {'.'.join(where)} {what}")

    def _located(self, where: tuple[str, ...], text: str, spelled: Mapping[str, str]) -> UserError:
        """Return a mistake that names an option, as the key that it stands for."""
        named = next(iter(re.findall(r"--([a-z][\w-]*)", text)), "").replace("-", "_")
        option = OPTION_KEYS.get(named, named)
        path = (*where, spelled[option]) if option in spelled else where
        if text.startswith(f"--{named.replace('_', '-')} ") and option in spelled:
            text = text.partition(" ")[2]
            return UserError(f"{self._at(path)}: {'.'.join(path)} {text}")
        text = text.removeprefix(f"--{named}: ")
        return UserError(f"{self._at(path)}: {'.'.join(path)}: {text}")

    def _at(self, where: tuple[str, ...]) -> str:
        """Return file and line of a key, or of the nearest table around it."""
        for length in range(len(where), 0, -1):
            *above, key = where[:length]
            for spelled in (key, key.replace("_", "-")):
                if line := self._lines.get((*above, spelled)):
                    return f"{self._file}:{line}"
        return str(self._file)


def _refuse_what_no_learner_here_takes(chosen: Settings) -> None:
    """Raise UserError for what a learner of this machine would refuse at its start, to nobody who looks."""
    environment_spec(chosen.run, chosen.launch.allow_env)
    if chosen.launch.step_hook:
        from learner.step_hook import load_hook

        load_hook(chosen.launch.step_hook)


def _texts(where: tuple[str, ...], value: Any) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield all texts and keys of a TOML value, each with the path of its key."""
    if isinstance(value, str):
        yield where, value
    elif isinstance(value, dict):
        for key, item in value.items():
            yield (*where, key), key
            yield from _texts((*where, key), item)
    elif isinstance(value, list):
        for item in value:
            yield from _texts(where, item)


def _key_lines(text: str) -> dict[tuple[str, ...], int]:
    """Return the line of each key and table of a TOML text, by its path."""
    lines: dict[tuple[str, ...], int] = {}
    table: tuple[str, ...] = ()
    for number, line in enumerate(text.split("\n"), 1):
        opens, (key, equals, _) = line.lstrip().startswith("["), line.partition("=")
        named = line.strip().removeprefix("[").partition("]")[0] if opens else key if equals else ""
        if _NAMED.fullmatch(named):
            path = tuple(part.strip().strip("\"'") for part in named.split(".", _DEEPEST)[:_DEEPEST])
            table, path = (path, path) if opens else (table, (*table, *path)[:_DEEPEST])
            for length in range(1, len(path) + 1):
                lines.setdefault(path[:length], number)
    return lines
