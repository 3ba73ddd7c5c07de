"""The help of a command: every name and default whole at any width, options under their groups."""

from __future__ import annotations

from typing import Any

from typer.core import TyperCommand


class PlainCommand(TyperCommand):
    """A command whose help lists its options by `rich_help_panel`, in their order."""

    def format_options(self, ctx: Any, formatter: Any) -> None:
        """Write arguments, then the options of each group."""
        groups: dict[str, list[tuple[str, str]]] = {}
        for parameter in self.get_params(ctx):
            usual = "Arguments" if parameter.param_type_name == "argument" else "Options"
            group = getattr(parameter, "rich_help_panel", None) or usual
            groups.setdefault(group, []).append(_record(parameter, ctx))
        for group, records in groups.items():
            with formatter.section(group):
                formatter.write_dl(records)


def _record(parameter: Any, ctx: Any) -> tuple[str, str]:
    """Return names and help: no type where a word says what it is, no name that turns off what is off."""
    names, text = parameter.get_help_record(ctx) or ("", "")
    off = text.removesuffix(" (default: no)")
    return (names.split(" / ")[0], off) if off != text else (names.split(" <")[0], text)
