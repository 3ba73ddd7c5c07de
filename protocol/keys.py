"""Keys: who may speak to a learner. Pairs, the files they lie in, and the list of those that are let in.

A keyring is a folder of the learner's user:

    learner.key     the learner's own pair, made on first use
    allowed.toml    name, role and public key of whoever is let in; a running learner reads it again
    clients/        the files that `fleet keys new` made; one of them on a host is all that it needs

Whoever can read a secret is its owner, so files that others may read are refused.
"""

from __future__ import annotations

import fcntl
import os
import re
import struct
import tomllib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, cast, get_args

from protocol.errors import UserError

Role = Literal["worker", "operator"]
"""A worker plays and asks; an operator may also command the fleet."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,63}")
_PUBLIC_CHARACTERS, _PUBLIC_BYTES = 40, 32
_OTHERS = 0o077
_WITHOUT_CURVE = "this pyzmq has no CURVE (libsodium): install pyzmq's wheel, which has it"


@dataclass(frozen=True, slots=True)
class KeyPair:
    """A CURVE pair, in Z85."""

    public: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> KeyPair:
        """Make a pair. Raises UserError where ZeroMQ was built without CURVE."""
        import zmq  # here, because commands name keys that make none

        if not zmq.has("curve"):
            raise UserError(_WITHOUT_CURVE)
        public, secret = zmq.curve_keypair()
        return cls(public.decode(), secret.decode())


@dataclass(frozen=True, slots=True)
class PeerKey:
    """All that a worker or an operator needs to speak to a learner: its own pair, and whom to trust."""

    name: str
    role: Role
    pair: KeyPair
    server: str
    """The learner's public key."""

    @classmethod
    def read(cls, file: Path) -> PeerKey:
        """Read a key file. Raises UserError where it is missing, no key, or readable by others."""
        values = _read_private(file)
        if "server" not in values:
            raise UserError(f"{file} is no key of a worker or operator: fleet keys new NAME makes one")
        return cls(
            name=checked_name(_text(values, "name", file)),
            role=checked_role(_text(values, "role", file)),
            pair=KeyPair(_key(values, "public", file), _key(values, "secret", file)),
            server=_key(values, "server", file),
        )

    def write(self, file: Path) -> None:
        """Write a new file of mode 0600. Raises UserError where there is one."""
        text = (
            f"# The key of a Rollout Fleet {self.role}. Whoever has this file may act as one.\n"
            f'name = "{self.name}"\nrole = "{self.role}"\npublic = "{self.pair.public}"\n'
            f'secret = "{self.pair.secret}"\nserver = "{self.server}"\n'
        )
        _write_new(file, text)


@dataclass(frozen=True, slots=True)
class Allowed:
    """One whom a learner lets in."""

    name: str
    role: Role
    public: str


@dataclass(frozen=True, slots=True)
class AllowList:
    """Whom a learner lets in, by public key."""

    keys: Mapping[str, Allowed] = field(default_factory=dict)
    reopen: int = 0
    """Raised where all connections are to be closed, so that those of revoked keys are."""

    def named(self, name: str) -> Allowed | None:
        """Return the key of this name."""
        return next((key for key in self.keys.values() if key.name == name), None)

    def to_toml(self) -> str:
        """Return the text that `parse` reads."""
        head = f"# Whom this learner lets in: fleet keys new, allow, revoke.\nreopen = {self.reopen}\n"
        return head + "".join(
            f'\n[keys."{key.name}"]\nrole = "{key.role}"\npublic = "{key.public}"\n'
            for key in self.keys.values()
        )

    @classmethod
    def parse(cls, values: Mapping[str, Any], file: Path) -> AllowList:
        """Return the list that a TOML file holds. Raises UserError where it is none."""
        reopen, entries = values.get("reopen", 0), values.get("keys", {})
        if type(reopen) is not int or not isinstance(entries, dict):
            raise UserError(
                f"{file} is no list of allowed keys: restore it, or remove it and allow them anew"
            )
        keys: dict[str, Allowed] = {}
        for name, entry in entries.items():
            if not isinstance(entry, dict):
                raise UserError(f'{file}: [keys."{name}"] is no table of role and public')
            public = _key(entry, "public", file)
            role = checked_role(_text(entry, "role", file))
            if public in keys:
                raise UserError(f"{file}: {name} and {keys[public].name} are the same key: remove one")
            keys[public] = Allowed(checked_name(name), role, public)
        return cls(keys, reopen)


class Keyring:
    """A folder of keys; made, with mode 0700, by the first command that writes to it."""

    def __init__(self, folder: Path | None = None) -> None:
        self.folder = folder or default_folder()
        self._allowed = self.folder / "allowed.toml"

    @property
    def in_use(self) -> bool:
        """Say whether there is a learner's key."""
        return (self.folder / "learner.key").exists()

    def learner(self) -> KeyPair:
        """Return the learner's own pair, made on first use. Raises UserError where others may read it."""
        file = self.folder / "learner.key"
        with self._locked():
            if not file.exists():
                pair = KeyPair.new()
                text = f'# The learner\'s own key: it stays here.\npublic = "{pair.public}"\n'
                _write_new(file, text + f'secret = "{pair.secret}"\n')
            values = _read_private(file)
        return KeyPair(_key(values, "public", file), _key(values, "secret", file))

    def allowed(self) -> AllowList:
        """Return whom the learner lets in: nobody where there is no list yet. Raises UserError."""
        try:
            self._allowed.stat()
        except FileNotFoundError:
            return AllowList()
        except OSError as error:
            raise UserError(f"the key file {self._allowed} cannot be read: {error.strerror}") from error
        return AllowList.parse(_read_private(self._allowed), self._allowed)

    def signature(self) -> tuple[int, int, int]:
        """Return what changes when the list does."""
        try:
            found = self._allowed.stat()
        except OSError:
            return 0, 0, 0
        return found.st_mtime_ns, found.st_ino, found.st_size

    def new(self, name: str, role: Role, file: Path | None = None) -> tuple[PeerKey, Path]:
        """Make a key, let it in, and write the file that its host needs; return both."""
        key = PeerKey(checked_name(name), role, KeyPair.new(), self.learner().public)
        if file is None:
            file = self.folder / "clients" / f"{name}.key"
            file.parent.mkdir(mode=0o700, exist_ok=True)
        with self._locked():
            self._refuse_taken(name)
            key.write(file)
            self._add(Allowed(name, role, key.pair.public))
        return key, file

    def allow(self, name: str, role: Role, public: str) -> None:
        """Let a key in. Raises UserError where it is none, or the name is another's."""
        if not is_public_key(public):
            raise UserError(
                f"{public!r} is neither a key file nor a public key of {_PUBLIC_CHARACTERS} letters"
            )
        with self._locked():
            self._refuse_taken(checked_name(name))
            if known := self.allowed().keys.get(public):
                raise UserError(f"this key is allowed already, as {known.name}")
            self._add(Allowed(name, role, public))

    def revoke(self, name: str, *, now: bool = False) -> None:
        """Let a key in no more; `now` asks a running learner to close all connections, and listen anew."""
        with self._locked():
            before = self.allowed()
            if (gone := before.named(name)) is None:
                known = ", ".join(key.name for key in before.keys.values()) or "none"
                raise UserError(f"no key named {name} is allowed; allowed are: {known}")
            keys = {public: key for public, key in before.keys.items() if public != gone.public}
            self._replace(AllowList(keys, before.reopen + now))

    def _refuse_taken(self, name: str) -> None:
        if self.allowed().named(name):
            raise UserError(f"a key named {name} is allowed already: choose another name, or revoke it first")

    def _add(self, key: Allowed) -> None:
        before = self.allowed()
        self._replace(AllowList({**before.keys, key.public: key}, before.reopen))

    def _replace(self, allowed: AllowList) -> None:
        new = self._allowed.with_suffix(".new")
        new.unlink(missing_ok=True)
        _write_new(new, allowed.to_toml())
        new.replace(self._allowed)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the folder against other commands; make it where it is not there."""
        try:
            self.folder.mkdir(parents=True, mode=0o700, exist_ok=True)
            descriptor = os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        except OSError as error:
            raise UserError(f"{self.folder} cannot hold keys: {error.strerror}") from error
        try:
            _refuse_wide(self.folder, os.fstat(descriptor).st_mode, 0o700)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield
        finally:
            os.close(descriptor)


def default_folder() -> Path:
    """Return where a user's keys lie: ~/.config/rollout-fleet."""
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config") / "rollout-fleet"


def is_public_key(text: str) -> bool:
    """Say whether a text is a key in Z85."""
    from zmq.utils import z85

    if len(text) != _PUBLIC_CHARACTERS:
        return False
    try:
        return len(z85.decode(text)) == _PUBLIC_BYTES
    except (ValueError, KeyError, struct.error):  # other letters, or five that stand for too large a number
        return False


def checked_name(name: str) -> str:
    """Return a key's name. Raises UserError where it would not do in files and logs."""
    if not _NAME.fullmatch(name):
        raise UserError(f"{name!r} is no name of a key: use letters, digits and . _ @ -, 64 at most")
    return name


def checked_role(role: str) -> Role:
    """Return a role. Raises UserError where there is no such one."""
    if role not in get_args(Role):
        raise UserError(f"{role!r} is no role of a key: choose from {', '.join(get_args(Role))}")
    return cast(Role, role)


def _read_private(file: Path) -> dict[str, Any]:
    """Return the values of a TOML file that only its owner may read. Raises UserError."""
    try:
        with file.open("rb") as opened:
            _refuse_wide(file, os.fstat(opened.fileno()).st_mode, 0o600)
            return tomllib.load(opened)
    except OSError as error:
        raise UserError(f"the key file {file} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no key file: {error}") from error


def _refuse_wide(path: Path, mode: int, wanted: int) -> None:
    if mode & _OTHERS:
        raise UserError(f"{path} is open to others (mode {mode & 0o777:04o}): chmod {wanted:o} {path}")


def _write_new(file: Path, text: str) -> None:
    """Write and sync a file of mode 0600 that is not there yet. Raises UserError."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w", encoding="utf-8") as opened:
            opened.write(text)
            opened.flush()
            os.fsync(opened.fileno())
    except FileExistsError as error:
        raise UserError(f"{file} exists: remove it, or let its key in again with fleet keys allow") from error
    except OSError as error:
        raise UserError(f"{file} cannot be written: {error.strerror}") from error


def _text(values: Mapping[str, Any], name: str, file: Path) -> str:
    if not isinstance(value := values.get(name), str):
        raise UserError(f"{file} is damaged: it has no {name}")
    return value


def _key(values: Mapping[str, Any], name: str, file: Path) -> str:
    if not is_public_key(value := _text(values, name, file)):
        raise UserError(f"{file} is damaged: its {name} is no key")
    return value
