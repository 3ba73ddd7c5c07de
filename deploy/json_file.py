"""The option `--json` of commands that print a result: found unwritable before the work, not after it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from protocol.errors import UserError


def _writable(file: Path | None) -> Path | None:
    """Return `file`. Raises UserError where it could not be written."""
    if file is None:
        return None
    folder = file.parent
    if not folder.is_dir():
        raise UserError(f"--json {file} cannot be written: there is no folder {folder}")
    if file.is_dir():
        raise UserError(f"--json {file} cannot be written: it is a folder")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise UserError(f"--json {file} cannot be written: you may not write there")
    return file


JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=_writable, help="Write the result here too, as JSON."),
]


def write_json(file: Path | None, content: Any) -> None:
    """Write `content`, if there is a file. Raises UserError where it cannot be written after all."""
    if file is None:
        return
    try:
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise UserError(f"--json {file} cannot be written: {error.strerror}") from error
