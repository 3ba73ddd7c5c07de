"""Files that options such as `--json` have written: found unwritable before the work, not after it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.storage import file_told
from protocol.errors import UserError


def writable(option: typer.CallbackParam, file: Path | None) -> Path | None:
    """Return the `file` of an option. Raises UserError where it could not be written."""
    if file is None:
        return None
    folder, problem = file.parent, f"{option.opts[0]} {file} cannot be written"
    if not folder.is_dir():
        raise UserError(f"{problem}: there is no folder {folder}")
    if file.is_dir():
        raise UserError(f"{problem}: it is a folder")
    if not os.access(file if file.exists() else folder, os.W_OK):
        raise UserError(f"{problem}: you may not write there")
    return file


JsonFile = Annotated[
    Path | None,
    typer.Option("--json", metavar="FILE", callback=writable, help="Write the result here too, as JSON."),
]


def write_json(file: Path | None, content: Any) -> None:
    """Write `content`, if there is a file. Raises UserError where it cannot be written after all."""
    if file is None:
        return
    with file_told("--json", file):
        file.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
