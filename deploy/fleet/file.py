"""What fleet.toml says: the learner, and pools of workers, checked key by key before anything is started."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from pathlib import Path
from types import UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from deploy.engines.catalogue import ENGINES, options_class
from deploy.fleet.autoscale import Rule
from deploy.fleet.hosts import expand_hosts
from deploy.fleet.learner_process import Place
from deploy.options import settings
from deploy.settings import OPTION_KEYS, Settings, resolve
from learner.config import SIZE, Range, check_ranges
from protocol.errors import UserError
from protocol.keys import PeerKey

_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_]*(-[A-Za-z][A-Za-z0-9_]*)*")
"""Of a pool: its workers are NAME-1, NAME-2, ..."""
_NAMED = re.compile(r"[\w.\"'\s-]+")
"""What may stand in brackets or before an equals sign, where a line opens a table or sets a key."""
_DEEPEST = 4
"""More keys than in any path that a mistake is told with."""


@dataclass(frozen=True, slots=True)
class PoolKeys:
    """Keys of `[pools.NAME]` that every engine has."""

    engine: Literal["local", "ssh", "slurm"]
    """Who runs the workers."""
    count: int | None = None
    """Workers; left out, as many as the engine's hosts have room for, or `min` where there is a `target`."""
    min: int = 0
    """The fewest that autoscaling leaves."""
    max: int | None = None
    """The most that `fleet scale` and autoscaling may ask for; a target needs it."""
    target: str = ""
    """learner_busy:0.9 grows and shrinks the pool so that the learner is busy this share of the time."""
    slots: int = 50
    """Environments of each worker."""
    learner: str = ""
    """HOST:PORT where this pool's machines reach the learner, if not `[learner] address`."""
    key: str = ""
    """The workers' key file, on this machine."""
    allow_env: tuple[str, ...] = ()
    """Modules that the workers may import, because they register environments."""
    drain_seconds: float = 600.0
    """Workers that must go may finish their episodes for this long; then they return them."""

    def __post_init__(self) -> None:
        """Refuse numbers that contradict each other."""
        check_ranges(self, {"min": SIZE, "slots": Range(1, 10**6), "drain_seconds": Range(0)})
        most = 10**6 if self.max is None else self.max
        for name, value in (("max", self.max), ("count", self.count)):
            if value is not None and not 0 <= value <= 10**6:
                raise UserError(f"--{name} is {value}; it must be from 0 to 1000000")
        if self.min > most:
            raise UserError(f"--min is {self.min}; it must be at most max, which is {most}")
        if self.count is not None and self.count > most:
            raise UserError(f"--count is {self.count}; it must be at most max, which is {most}")
        if self.target:
            try:
                Rule.of(self.min, self.max, self.target)
            except UserError as error:
                raise UserError(f"--target: {error}") from error
        if self.target and self.count is not None:
            raise UserError("--count contradicts target, which decides how many: leave one of them out")


@dataclass(frozen=True, slots=True)
class PoolPlan:
    """One pool, as the file says."""

    keys: PoolKeys
    options: Any
    """Of its engine's class of options."""
    hosts: int = 0
    """How many it names; 0 where its engine has other ways."""


@dataclass(frozen=True, slots=True)
class FleetPlan:
    """The whole file."""

    name: str
    """Of the run."""
    place: Place
    """Where the learner runs."""
    address: str
    """HOST:PORT that the pools dial; empty where the file leaves that to us."""
    key: str
    """The operator's key file; empty where nothing is encrypted, or the environment names one."""
    settings: Settings
    pools: Mapping[str, PoolPlan] = field(default_factory=dict)


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


def fit_options(engine: str, plain: Mapping[str, Any]) -> Any:
    """Return an engine's options from what `asdict` and JSON made of them. Raises UserError."""
    try:
        kind = options_class(fitted(Literal[ENGINES], engine))
        hints = get_type_hints(kind)
        return kind(**{name: fitted(hints[name], value) for name, value in plain.items()})
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"options of {engine} of another release: {error!r}; fleet up writes them anew"
        ) from error


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
        own, chosen = self._learner(content.get("learner", {}))
        pools = {pool: self._pool(pool, table) for pool, table in content.get("pools", {}).items()}
        name = chosen.run.name or self._file.stem
        place = Place(own["host"], own["python"], own["ssh_config"])
        return FleetPlan(name, place, own["address"], own["key"], chosen, pools)

    def _learner(self, table: Mapping[str, Any]) -> tuple[Mapping[str, str], Settings]:
        own = {**asdict(Place()), "address": "", "key": "", "config": ""}
        told, spelled = {}, {}
        mine = {name for name in settings() if name not in ("workers", "slots")}
        for key, value in table.items():
            option = OPTION_KEYS.get(key.replace("-", "_"), key.replace("-", "_"))
            if option in own:
                own[option] = self._value(str, value, ("learner", key))
            elif option in mine:
                told[option], spelled[option] = value, key
            else:
                raise self._unknown(("learner", key), [*own, *mine, *OPTION_KEYS])
        config = self._file.parent / own["config"] if own["config"] else None
        try:
            chosen = resolve(told, config)
        except UserError as error:
            raise self._located(("learner",), str(error), spelled) from error
        if own["address"] and not re.fullmatch(r"\S+:\d{1,5}", own["address"]):
            raise self._wrong(("learner", "address"), f"is {own['address']!r}: give HOST:PORT")
        if self._key(own["key"], ("learner", "key")) == "worker":
            raise self._wrong(
                ("learner", "key"), "is a worker's key: fleet keys new NAME --role operator makes one"
            )
        return own, chosen

    def _pool(self, name: str, table: Any) -> PoolPlan:
        where = ("pools", name)
        if not _NAME.fullmatch(name) or len(name) > 60:
            raise self._wrong(
                where, "is no name of a pool: use letters, digits and _, and a letter after each -"
            )
        if not isinstance(table, dict):
            raise self._wrong(where, f"is no table: write [pools.{name}]")
        if "engine" not in table:
            raise self._wrong(where, f"names no engine: add engine = {_choices(ENGINES)}")
        kind = options_class(self._value(Literal[ENGINES], table["engine"], (*where, "engine")))
        names = {entry.name for entry in fields(kind)} | {entry.name for entry in fields(PoolKeys)}
        told = {key.replace("-", "_"): value for key, value in table.items()}
        for key in table:
            if key.replace("-", "_") not in names:
                raise self._unknown((*where, key), names)
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
            raise self._wrong(where, f"is {value!r}: it must be {_spelled(hint)}") from None

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
            if line := self._lines.get(where[:length]):
                return f"{self._file}:{line}"
        return str(self._file)


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


def fitted(hint: Any, value: Any) -> Any:
    """Return a value of TOML or JSON as the type of a field. Raises ValueError where it is none."""
    kinds = get_args(hint)
    if get_origin(hint) in (Union, UnionType):
        for kind in kinds:
            try:
                return fitted(kind, value)
            except ValueError:
                pass
    elif get_origin(hint) is Literal:
        if value in kinds and type(value) in {type(kind) for kind in kinds}:
            return value
    elif get_origin(hint) is tuple:
        return tuple(
            fitted(kinds[0], item) for item in (value if isinstance(value, list | tuple) else [value])
        )
    elif get_origin(hint) is Mapping:
        if isinstance(value, dict):
            return {name: fitted(kinds[1], item) for name, item in value.items()}
    elif isinstance(hint, type) and is_dataclass(hint):
        if isinstance(value, dict):
            hints = get_type_hints(hint)
            return hint(**{name: fitted(hints[name], item) for name, item in value.items()})
    elif hint is Any:
        return value
    elif hint is type(None) and value is None:
        return None
    elif hint is float and type(value) is int and abs(value) < 2**1000:
        return float(value)
    elif hint is Path and isinstance(value, str):
        return Path(value)
    elif type(value) is hint:
        return value
    raise ValueError


def _spelled(hint: Any) -> str:
    """Return what a field wants, in words."""
    words = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
    kinds = [kind for kind in get_args(hint) if kind is not type(None)]
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(_spelled(kind) for kind in kinds)
    if get_origin(hint) is Literal:
        return _choices(kinds)
    if get_origin(hint) is tuple:
        return f"a list, each {_spelled(kinds[0])}"
    return words.get(hint, "text in quotes")


def _choices(values: Iterable[Any]) -> str:
    return " or ".join(f'"{value}"' for value in values)
