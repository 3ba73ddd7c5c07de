"""What a sweep searches: the options named in the [space] of a TOML file, and the values each may take."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deploy.config import CAGE2_ENVIRONMENTS
from deploy.environment import environment_spec
from deploy.options import Setting, settings
from deploy.settings import OPTION_KEYS, resolve
from learner.config import PPOConfig
from protocol.errors import UserError

if TYPE_CHECKING:
    from optuna.trial import Trial

Value = str | int | float | bool

_OF_THE_ENVIRONMENT = ("observation", "actions", "episode_length")
SWEEPABLE = frozenset({field.name for field in fields(PPOConfig)} - {"torch_threads"}) | {
    "episodes_per_update",
    "max_lag",
    "n_envs",
    "order",
    *_OF_THE_ENVIRONMENT,
}
"""What changes how well is learned from the same episodes; not how many there are, nor what is played."""

_NUMBER_KEYS = {"low", "high", "step", "log"}


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers from `low` to `high`, both included; those `step` apart if it is told."""

    name: str
    low: float
    high: float
    step: float | None
    log: bool
    whole: bool

    @property
    def ends(self) -> tuple[Value, ...]:
        """Return the values that must be allowed for all to be."""
        return (self.low, self.high)

    def suggest(self, trial: Trial) -> Value:
        """Return the value of one trial."""
        if self.whole:
            low, high, step = int(self.low), int(self.high), int(self.step or 1)
            return trial.suggest_int(self.name, low, high, step=step, log=self.log)
        return trial.suggest_float(self.name, self.low, self.high, step=self.step, log=self.log)

    def holds(self, value: Any) -> bool:
        """Say whether a value is one of them."""
        if not isinstance(value, int | float) or not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0
        return abs(steps - round(steps)) < 1e-9


@dataclass(frozen=True, slots=True)
class Choices:
    """The values of a list."""

    name: str
    values: tuple[Value, ...]

    @property
    def ends(self) -> tuple[Value, ...]:
        """Return the values that must be allowed for all to be."""
        return self.values

    def suggest(self, trial: Trial) -> Value:
        """Return the value of one trial."""
        chosen = trial.suggest_categorical(self.name, self.values)
        assert chosen is not None
        return chosen

    def holds(self, value: Any) -> bool:
        """Say whether a value is one of them."""
        return value in self.values


Parameter = Numbers | Choices
Space = tuple[Parameter, ...]


def read_space(file: Path) -> str:
    """Return the text of a space's file. Raises UserError."""
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"{file} is not valid TOML: {error}") from error


def parse_space(text: str, file: Path) -> Space:
    """Return the parameters of a space. Raises UserError, in one line, for what makes no sense."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{file} is not valid TOML: {error}") from error
    if other := content.keys() - {"space"}:
        raise UserError(f"{file}: {min(other)!r} is not understood: a space's file holds one table, [space]")
    space = content.get("space")
    if not isinstance(space, dict) or not space:
        raise UserError(
            f"{file}: nothing to search: write [space] and under it entries such as gamma = [0.99, 1]"
        )
    names = [_field(key) for key in space]
    if twice := next((name for name in names if names.count(name) > 1), ""):
        raise UserError(f"{file}: {twice} is there twice")
    return tuple(_parameter(key, value, file) for key, value in space.items())


def check_space(space: Space, base: Path, file: Path) -> None:
    """Raise UserError where `fleet train --config BASE` would refuse a value of the space."""
    for parameter in space:
        for value in parameter.ends:
            try:
                chosen = resolve({parameter.name: value}, base)
                if parameter.name in _OF_THE_ENVIRONMENT:
                    environment_spec(chosen.run, chosen.launch.allow_env)
            except UserError as error:
                raise UserError(f"{file}: {parameter.name}: {error}") from error
        environment = chosen.run.environment
        if parameter.name == "episode_length" and environment not in CAGE2_ENVIRONMENTS:
            raise UserError(
                f"{file}: episode_length cannot be swept with --env {environment}: it is what is scored"
            )


def usual_values(space: Space, defaults: Mapping[str, Any]) -> dict[str, Value] | None:
    """Return where in the space the fixed settings lie, None where they do not."""
    plain = {p.name: _plain(defaults[p.name]) for p in space}
    return plain if all(parameter.holds(plain[parameter.name]) for parameter in space) else None


def suggest(space: Space, trial: Trial) -> dict[str, Value]:
    """Return the values of one trial."""
    return {parameter.name: parameter.suggest(trial) for parameter in space}


def _field(key: str) -> str:
    name = key.replace("-", "_")
    return OPTION_KEYS.get(name, name)


def _parameter(key: str, value: Any, file: Path) -> Parameter:
    name, where = _field(key), f"{file}: {key}"
    if name not in settings():
        near = get_close_matches(name, sorted(SWEEPABLE), n=3)
        mend = f"did you mean {' or '.join(near)}?" if near else "fleet train --help lists the options"
        raise UserError(f"{where} is no option of fleet train: {mend}")
    if name not in SWEEPABLE:
        raise UserError(f"{where} cannot be swept: fix it on the command line or in --config instead")
    if isinstance(value, list):
        return _choices(name, value, where)
    if isinstance(value, dict):
        return _numbers(settings()[name], value, where)
    mend = "give a list of values, or { low = ..., high = ... }"
    raise UserError(f"{where} is {value!r}: {mend}, and fix a single value on the command line")


def _choices(name: str, values: list[Any], where: str) -> Choices:
    plain = tuple(_plain(value) for value in values)
    if len(plain) < 2 or len(set(map(repr, plain))) < len(plain):
        raise UserError(f"{where} is {values!r}: give at least two values, each once")
    for value in plain:
        if not isinstance(value, str | int | float):
            raise UserError(f"{where} has {value!r}: give text, a number, true or false")
    return Choices(name, plain)


def _numbers(setting: Setting, value: dict[str, Any], where: str) -> Numbers:
    whole = setting.type is int
    if setting.type not in (int, float):
        raise UserError(f"{where} is no number: give a list of values")
    if unknown := value.keys() - _NUMBER_KEYS:
        raise UserError(f"{where} has {min(unknown)!r}, which is none of low, high, step, log")
    if not {"low", "high"} <= value.keys():
        raise UserError(f"{where} needs both low and high")
    for key in value.keys() - {"log"}:
        if type(value[key]) not in ((int,) if whole else (int, float)):
            raise UserError(f"{where}: {key} is {value[key]!r}: it must be a {'whole ' * whole}number")
    low, high, step, log = value["low"], value["high"], value.get("step"), value.get("log", False)
    if type(log) is not bool:
        raise UserError(f"{where}: log is {log!r}: it must be true or false")
    if not low < high:
        raise UserError(f"{where}: low is {low} and high is {high}: low must be less")
    if log and (step is not None or low <= 0):
        raise UserError(f"{where}: with log = true, low must be more than 0 and no step be given")
    if step is not None and not 0 < step <= high - low:
        raise UserError(f"{where}: step is {step}: it must be more than 0, at most {high - low:g}")
    return Numbers(setting.name, low, high, step, log, whole)


def _plain(value: Any) -> Any:
    """Return a list as the text that the command line takes, all else as it is."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value
