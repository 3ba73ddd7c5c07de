"""Where the settings of a run come from: defaults, then a TOML file, then the command line."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import Any, TypeVar, cast, get_args

from deploy.config import CAGE2_ENVIRONMENTS, GYMNASIUM_DEFAULTS, LaunchConfig
from deploy.options import Setting, settings
from learner.config import PPOConfig, Range, RunConfig, check_range
from protocol.errors import UserError

T = TypeVar("T", int, float)

RED_AGENTS = {"b_line": "B_lineAgent", "meander": "RedMeanderAgent", "sleep": "SleepAgent"}
"""Short names, and those of CybORG's classes."""

MAY_CHANGE_ON_RESUME = frozenset(
    {"n_envs", "total_episodes", "evaluation_episodes", "selection_episodes", "checkpoint_every"}
    | {"keep_checkpoints", "heartbeat_seconds", "liveness_seconds", "stuck_after_seconds", "max_losses"}
    | {"torch_threads", "workers", "slots", "allow_env", "bind", "port", "keys", "insecure"}
    | {"record_steps", "step_hook"}
)

OPTION_KEYS = {
    "env": "environment",
    "env_option": "environment_options",
    "red_agent": "red_agents",
    "red": "red_agents",
}
"""Keys of a TOML file that are spelled like the option, not like the field."""


@dataclass(frozen=True, slots=True)
class Settings:
    """All that a start of a run is told."""

    run: RunConfig
    ppo: PPOConfig
    launch: LaunchConfig


def resolve(given: Mapping[str, Any], file: Path | None = None) -> Settings:
    """Return the settings: the defaults, covered by the TOML file, covered by `given` (raw values by field).

    Other environments than CAGE-2 have GYMNASIUM_DEFAULTS.

    Raises UserError for unknown keys, values of the wrong type and values that contradict each other.
    """
    return _resolve(given, read_toml(file) if file else {})


def settings_of(config: str) -> Settings:
    """Return the settings that the text of a config.toml holds. Raises UserError as `resolve` does."""
    return _resolve({}, _parse(config, "config.toml"))


def _resolve(given: Mapping[str, Any], filed: dict[str, Any]) -> Settings:
    """Return the defaults, covered by the settings of a file, covered by `given`."""
    catalogue = settings()
    commanded = {name: _coerce(catalogue[name], v, catalogue[name].flags[0]) for name, v in given.items()}
    if "lag" in commanded:
        filed = {name: value for name, value in filed.items() if name not in ("max_lag", "order")}
    if commanded.get("mode") == "sync":
        filed = {name: value for name, value in filed.items() if name not in ("max_lag", "lag")}
    told = _expand_lag(filed | commanded)
    _check_mode(told)
    cage2 = told.get("environment", RunConfig().environment) in CAGE2_ENVIRONMENTS
    values = told if cage2 else {**GYMNASIUM_DEFAULTS, **told}
    kinds = (RunConfig, PPOConfig, LaunchConfig)
    run, ppo, launch = ({f.name: values[f.name] for f in fields(k) if f.name in values} for k in kinds)
    return _shared_out(Settings(RunConfig(**run), PPOConfig(**ppo), LaunchConfig(**launch)), told)


def resolve_resumed(given: Mapping[str, Any], file: Path) -> Settings:
    """Return the settings of the run whose config.toml is `file`, with what is given changed.

    Raises UserError where that would make another run of it.
    """
    if not read_toml(file):
        raise UserError(f"{file} is empty, so it does not tell how to go on: restore it, or begin a new run")
    before, after = resolve({}, file), resolve(given, file)
    check_resumable(before, after, file.parent.name)
    return after


def check_resumable(before: Settings, after: Settings, run: str) -> None:
    """Raise UserError where a run that began with `before` cannot go on with `after`."""
    for old, new in ((before.run, after.run), (before.ppo, after.ppo), (before.launch, after.launch)):
        for name in (field.name for field in fields(old)):
            was, becomes = getattr(old, name), getattr(new, name)
            if was != becomes and name not in MAY_CHANGE_ON_RESUME:
                flag = "--lag" if name == "exact" else settings()[name].flags[0].split("/")[0]
                raise UserError(
                    f"{flag} cannot change when a run is resumed ({run} has {was!r}): "
                    "leave it out, or begin a new run with --init-from"
                )


def read_toml(file: Path) -> dict[str, Any]:
    """Return the settings of a TOML file by field. Raises UserError where it cannot be read or understood."""
    try:
        text = file.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"--config {file} cannot be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise UserError(f"--config {file} is not valid TOML: {error}") from error
    return _parse(text, file)


def _parse(text: str, file: Path | str) -> dict[str, Any]:
    """Return the settings of a TOML text by field. Raises UserError."""
    try:
        content = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"--config {file} is not valid TOML: {error}") from error
    found = {}
    for key, value in content.items():
        name = OPTION_KEYS.get(key.replace("-", "_"), key.replace("-", "_"))
        if isinstance(value, dict) and name != "environment_options":
            raise UserError(f"{file}: [{key}] is a table: write its keys at the top level, without a [name]")
        if name not in settings():
            near = get_close_matches(name, [*settings(), *OPTION_KEYS], n=3)
            mend = f"did you mean {' or '.join(near)}?" if near else "fleet train --help lists the options"
            raise UserError(f"{file}: unknown key {key!r}: {mend}")
        found[name] = _coerce(settings()[name], value, f"{file}: {key}")
    return found


def to_toml(chosen: Settings) -> str:
    """Return the text of a config.toml that resolves to `chosen`, but for the name, which is the folder's."""
    lines = ["# Everything needed to repeat this run: fleet train --config THIS_FILE"]
    for title, part in (("The run", chosen.run), ("PPO", chosen.ppo), ("Processes", chosen.launch)):
        lines.append(f"\n# {title}")
        values = {field.name: getattr(part, field.name) for field in fields(part)}
        values.pop("name", None)
        if values.pop("exact", False):
            values["lag"] = f"exact:{values.pop('max_lag')}"
            del values["order"]
        lines += [f"{name} = {_toml(name, value)}" for name, value in values.items()]
    return "\n".join(lines) + "\n"


def red_agent(name: str) -> str:
    """Return the short name of one of CAGE-2's red agents. Raises UserError for other names."""
    for short, long in RED_AGENTS.items():
        if name.lower() in (short, long.lower()):
            return short
    choices = ", ".join(f"{short} ({long})" for short, long in RED_AGENTS.items())
    raise UserError(f"unknown red agent {name!r}: choose from {choices}")


def _expand_lag(values: Mapping[str, Any]) -> dict[str, Any]:
    """Put max_lag, order and exact in the place of `lag`."""
    rest = dict(values)
    lag = rest.pop("lag", "")
    if not lag:
        return rest
    kind, _, number = lag.partition(":")
    if kind != "exact" or not number.isdecimal():
        raise UserError(
            f"--lag {lag} is not understood: give exact:N such as exact:1, or --max-lag N for a bound"
        )
    for name, implied in (("max_lag", int(number)), ("order", "started")):
        if rest.setdefault(name, implied) != implied:
            flag = f"--{name.replace('_', '-')}"
            raise UserError(f"--lag {lag} implies {flag} {implied}, not {rest[name]}: leave {flag} out")
    return rest | {"exact": True}


def _check_mode(values: dict[str, Any]) -> None:
    """Give sync mode its lag, which is 0. Raises UserError for options that are for it alone without it."""
    if values.get("mode") == "sync":
        values.setdefault("max_lag", 0)
        return
    for name in ("record_steps", "step_hook"):
        if values.get(name):
            raise UserError(f"--{name.replace('_', '-')} belongs to --mode sync: add it, or leave this out")


def _shared_out(chosen: Settings, told: Mapping[str, Any]) -> Settings:
    """Make --n-envs what workers and slots make, if it is not told. UserError where they contradict."""
    workers, slots, n_envs = chosen.launch.workers, chosen.launch.slots, chosen.run.n_envs
    if workers * slots:
        if told.get("n_envs", workers * slots) != workers * slots:
            raise UserError(
                f"--workers {workers} of --slots {slots} make {workers * slots} environments, "
                f"not --n-envs {n_envs}: leave one of the three out"
            )
        return replace(chosen, run=replace(chosen.run, n_envs=workers * slots))
    if workers > n_envs:
        raise UserError(
            f"--workers is {workers}; it must be at most --n-envs, which is {n_envs}: "
            "each worker plays at least one environment"
        )
    return chosen


def number(kind: type[T], option: str, text: str, allowed: Range) -> T:
    """Return the number that an option was given. Raises UserError where it is none, or out of range."""
    value = _scalar(kind, text, option)
    check_range(option, value, allowed)
    return cast(T, value)


def _coerce(setting: Setting, value: Any, where: str) -> Any:
    """Return a value from the command line or a TOML file as its field's type. Raises UserError."""
    if setting.name == "environment_options":
        return _environment_options(value, where)
    if setting.many:
        such = "whole numbers, such as 64,64" if setting.name == "hidden" else ""
        items = tuple(_scalar(get_args(setting.type)[0], item, where, such) for item in _split(value))
        return tuple(red_agent(name) for name in items) if setting.name == "red_agents" else items
    if setting.name == "port" and isinstance(value, int):
        value = str(value)
    if setting.choices and value not in setting.choices:
        raise UserError(f"{where} is {value!r}: choose from {', '.join(setting.choices)}")
    value = value if setting.choices else _scalar(setting.type, value, where)
    if setting.name == "step_delay" and value:
        from rollout_worker.environments.delays import parse

        parse(value)
    return value


def _split(value: Any) -> list[Any]:
    """Return the items of a list, of which texts may hold several with commas between them."""
    items = value if isinstance(value, list) else [value]
    texts = [item.split(",") if isinstance(item, str) else [item] for item in items]
    return [item.strip() if isinstance(item, str) else item for text in texts for item in text]


def _scalar(kind: type, value: Any, where: str, wanted: str = "") -> Any:
    """Return `value` as a `kind`; text becomes a number where one is wanted, and nothing else changes.

    Raises UserError, saying what is `wanted`.
    """
    fits = type(value) is kind or (kind is float and type(value) is int)
    if fits or (kind in (int, float) and isinstance(value, str)):
        try:
            return kind(value)
        except (ValueError, OverflowError):
            pass
    words = {int: "a whole number", float: "a number", str: "text in quotes", bool: "true or false"}
    raise UserError(f"{where} is {value!r}: it must be {wanted or words[kind]}")


def _environment_options(value: Any, where: str) -> tuple[tuple[str, Any], ...]:
    """Return (name, value) pairs of a TOML table, or of NAME=VALUE texts, each value TOML or bare text."""
    if isinstance(value, dict):
        for name, item in value.items():
            if not _is_plain(item):
                raise UserError(f"{where} has {name} = {item!r}: give text, a number, true, false or a list")
        return tuple(sorted(value.items()))
    if not isinstance(value, list | tuple) or not all(isinstance(text, str) for text in value):
        raise UserError(f"{where} is {value!r}: it must be a table, such as {{ green = true }}")
    options = {}
    for text in value:
        name, equals, literal = text.partition("=")
        if not equals or not name:
            raise UserError(f"{where} {text} is not understood: give NAME=VALUE")
        try:
            options[name] = tomllib.loads(f"value = {literal}")["value"]
        except (ValueError, RecursionError):
            options[name] = literal
    return tuple(sorted(options.items()))


def _is_plain(value: Any) -> bool:
    """Say whether a value is text, a number or true or false, or a list of such."""
    return all(map(_is_plain, value)) if isinstance(value, list) else isinstance(value, str | int | float)


def _toml(name: str, value: Any) -> str:
    if name == "environment_options":
        return "{ " + ", ".join(f"{_toml('', key)} = {_toml('', item)}" for key, item in value) + " }"
    if isinstance(value, tuple | list):
        return "[" + ", ".join(_toml("", item) for item in value) + "]"
    if isinstance(value, str):  # as in JSON, but for the one character that TOML wants escaped as well
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    return json.dumps(value) if isinstance(value, bool) else repr(value)
