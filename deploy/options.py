"""The command-line options of a training run, made from the fields of its configuration classes.

A field `n_envs: int = 100` with a docstring under it is the option `--n-envs`, with its help and its default,
and the key `n_envs` of a TOML file. Nothing is said twice.
"""

from __future__ import annotations

import ast
import inspect
import re
import textwrap
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import cache, wraps
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import typer

from deploy.config import GYMNASIUM_DEFAULTS, LaunchConfig
from learner.config import PPOConfig, RunConfig

_PANELS: Mapping[type, str] = {RunConfig: "The run", PPOConfig: "PPO", LaunchConfig: "Processes and sockets"}
_FLAGS = {
    "environment": ("--env", "--environment"),
    "red_agents": ("--red-agent", "--red"),
    "environment_options": ("--env-option",),
}
_METAVARS = {
    "environment_options": "NAME=VALUE",
    "red_agents": "AGENT",
    "episode_length": "STEPS",
    "observation": "NAME",
    "actions": "NAME",
    "hidden": "N,N",
    "step_delay": "DELAY",
    "allow_env": "MODULE",
    "record_steps": "FILE",
    "step_hook": "MODULE:FUNCTION",
    "environment": "NAME",
    "name": "NAME",
    "init_from": "RUN|CHECKPOINT",
    "bind": "ADDRESS",
    "keys": "FOLDER",
    "port": "PORT|auto",
    "lag": "exact:N",
}
_KIND_METAVARS: Mapping[Any, str] = {int: "N", float: "X"}
_HIDDEN = {"exact"}
"""Told by --lag."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One field of a configuration class, as its user sees it."""

    name: str
    type: Any
    default: Any
    help: str
    flags: tuple[str, ...]
    panel: str

    @property
    def many(self) -> bool:
        """Return whether the value is a list, given by commas or by repetition."""
        return get_origin(self.type) is tuple

    @property
    def choices(self) -> tuple[str, ...]:
        """Return the values allowed, () if any of the type is."""
        return get_args(self.type) if get_origin(self.type) is Literal else ()


LAG = Setting(
    name="lag",
    type=str,
    default="",
    help="exact:N plays each ticket under exactly the version N behind its batch: reproducible to the bit. "
    "Implies --max-lag N --order started.",
    flags=("--lag",),
    panel=_PANELS[RunConfig],
)


@cache
def settings() -> Mapping[str, Setting]:
    """Return all settings by field name, in the order of the help."""
    found = [setting for kind in _PANELS for setting in _settings_of(kind) if setting.name not in _HIDDEN]
    position = next(index for index, setting in enumerate(found) if setting.name == "max_lag") + 1
    return types.MappingProxyType({s.name: s for s in (*found[:position], LAG, *found[position:])})


def with_settings(*, without: tuple[str, ...] = ()) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command all options but those `without`; its first argument is the mapping of those given."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        mine = {name: setting for name, setting in settings().items() if name not in without}

        @wraps(command)
        def wrapper(**arguments: Any) -> Any:
            given = {name: arguments.pop(name) for name in mine}
            return command({name: value for name, value in given.items() if value is not None}, **arguments)

        own = list(inspect.signature(command, eval_str=True).parameters.values())[1:]
        options = [_parameter(setting) for setting in mine.values()]
        wrapper.__signature__ = inspect.Signature([*own, *options])  # type: ignore[attr-defined]  # typer reads it
        wrapper.__annotations__ = {parameter.name: parameter.annotation for parameter in (*own, *options)}
        return wrapper

    return decorate


def _settings_of(kind: type) -> list[Setting]:
    hints, docstrings, found = get_type_hints(kind), _docstrings(kind), []
    for field in fields(kind):
        flag = "--" + field.name.replace("_", "-")
        usual = (f"{flag}/--no-{flag[2:]}",) if hints[field.name] is bool else (flag,)
        flags = _FLAGS.get(field.name, usual)
        text = docstrings[field.name]
        found.append(Setting(field.name, hints[field.name], field.default, text, flags, _PANELS[kind]))
    return found


def _parameter(setting: Setting) -> inspect.Parameter:
    """Return the option for typer: text, of which `deploy.settings` makes a value as of one in a file."""
    kind: Any = bool if setting.type is bool else list[str] if setting.many else str
    option = typer.Option(
        *setting.flags,
        help=_help(setting),
        show_default=False,
        rich_help_panel=setting.panel,
        metavar=_metavar(setting),
    )
    annotation = Annotated[kind | None, option]
    keyword = inspect.Parameter.KEYWORD_ONLY
    return inspect.Parameter(setting.name, keyword, default=None, annotation=annotation)


def _metavar(setting: Setting) -> str | None:
    if setting.type is bool:
        return None
    return (
        _METAVARS.get(setting.name) or "|".join(setting.choices) or _KIND_METAVARS.get(setting.type, "TEXT")
    )


def _help(setting: Setting) -> str:
    """Return the field's docstring, other fields named as options, and the default."""
    text = re.sub(r"`(\w+_\w+)`", lambda found: "--" + found[1].replace("_", "-"), setting.help).replace(
        "`", ""
    )
    default, elsewhere = _plain(setting.default), GYMNASIUM_DEFAULTS.get(setting.name)
    if elsewhere is not None:
        default += f"; with --env other than cage2: {_plain(elsewhere)}"
    return f"{text} (default: {default})" if default else text


def _plain(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    if isinstance(default, tuple):
        return ",".join(map(str, default))
    return f"{default:g}" if isinstance(default, float) else str(default)


def _docstrings(kind: type) -> dict[str, str]:
    """Return the string literals that stand under the fields of a class."""
    [definition] = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    assert isinstance(definition, ast.ClassDef)
    found = {}
    for statement, following in zip(definition.body, definition.body[1:], strict=False):
        match statement, following:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                found[name] = inspect.cleandoc(text).replace("\n", " ")
    return found
