"""`fleet keys`: whom this machine's learners let in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from deploy.exits import Exit
from deploy.help import PlainCommand
from deploy.json_file import JsonFile, write_json
from protocol.errors import UserError
from protocol.keys import Keyring, PeerKey, checked_role, is_public_key

KeysFolder = Annotated[
    Path | None,
    typer.Option("--keys", metavar="FOLDER", help="Folder of keys (default: ~/.config/rollout-fleet)."),
]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="Name of the key: a host, a site, a person.")]
_Role = Annotated[
    str | None,
    typer.Option("--role", metavar="worker|operator", help="An operator may pause and drain, too."),
]

app = typer.Typer(
    name="keys",
    help="Say whom this machine's learners let in.",
    add_completion=False,
    rich_markup_mode=None,
)


@app.callback(invoke_without_command=True)
def keys(context: typer.Context) -> None:
    """Say whom this machine's learners let in."""
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())


def new(
    name: _Name,
    role: _Role = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE", help="Write the key file here.")
    ] = None,
    keys: KeysFolder = None,
) -> Exit:
    """Make a key and let it in: one file, which is all that a worker's host needs."""
    key, file = Keyring(keys).new(name, checked_role(role or "worker"), out)
    typer.echo(f"{file} is the key of {key.role} {name}, and is let in.")
    command = "status" if key.role == "operator" else "worker --learner"
    typer.echo(f"Copy it to its host, at mode 0600, and there: fleet {command} HOST:PORT --key {file.name}")
    return Exit.OK


def list_keys(keys: KeysFolder = None, json_file: JsonFile = None) -> Exit:
    """List the keys that are let in."""
    keyring = Keyring(keys)
    allowed = sorted(keyring.allowed().keys.values(), key=lambda key: key.name)
    for key in allowed:
        typer.echo(f"{key.name:20} {key.role:8} {key.public}")
    if not allowed:
        typer.echo(f"No key in {keyring.folder} is let in yet: fleet keys new NAME makes one.")
    content: list[Any] = [{"name": key.name, "role": key.role, "public": key.public} for key in allowed]
    write_json(json_file, content)
    return Exit.OK


def allow(
    key: Annotated[
        str, typer.Argument(metavar="KEYFILE|PUBLICKEY", help="A key file, or a public key of 40 letters.")
    ],
    name: Annotated[
        str | None, typer.Option("--name", metavar="NAME", help="Its name; a key file has one.")
    ] = None,
    role: _Role = None,
    keys: KeysFolder = None,
) -> Exit:
    """Let a key in that was made elsewhere, or that was revoked."""
    if is_public_key(key):
        if name is None:
            raise UserError("a public key has no name: add --name NAME")
        chosen, given, public = name, role or "worker", key
    elif not Path(key).exists():
        raise UserError(f"{key!r} is neither a key file nor a public key, which has 40 letters")
    else:
        found = PeerKey.read(Path(key))
        chosen, given, public = name or found.name, role or found.role, found.pair.public
    Keyring(keys).allow(chosen, checked_role(given), public)
    typer.echo(f"{chosen} is let in.")
    return Exit.OK


def revoke(
    name: _Name,
    now: Annotated[
        bool,
        typer.Option("--now", help="Close its connections, too: all workers reconnect, nothing is lost."),
    ] = False,
    keys: KeysFolder = None,
) -> Exit:
    """Let a key in no more; a learner at work hears of it within a second."""
    Keyring(keys).revoke(name, now=now)
    if now:
        typer.echo(f"{name} is let in no more, and loses its connections.")
    else:
        typer.echo(
            f"{name} is let in no more, and what it sends is dropped. While it stays connected it still gets"
            " new weights: --now ends that."
        )
    return Exit.OK


for _name, _command in (("new", new), ("list", list_keys), ("allow", allow), ("revoke", revoke)):
    app.command(name=_name, cls=PlainCommand, short_help=(_command.__doc__ or "").split("\n")[0])(_command)
