from __future__ import annotations

import errno
import logging
from pathlib import Path

import pytest

from learner.access import Access
from protocol.errors import UserError
from protocol.keys import Allowed, KeyPair, Keyring


@pytest.fixture
def keyring(tmp_path: Path) -> Keyring:
    return Keyring(tmp_path / "keys")


def test_the_list_is_read_again_each_second(keyring: Keyring) -> None:
    lab, _ = keyring.new("lab", "worker")
    access = Access(keyring)
    assert access.admits(lab.pair.public) and not access.commands(lab.pair.public)
    assert access.read_again(0.0) is None
    boss, _ = keyring.new("boss", "operator")
    assert access.read_again(0.5) is None and not access.admits(boss.pair.public)
    changes = access.read_again(1.0)
    assert changes is not None and changes.revoked == () and not changes.reopen
    assert access.commands(boss.pair.public) and access.name(boss.pair.public) == "boss"
    keyring.revoke("lab")
    changes = access.read_again(2.0)
    assert changes is not None and [key.name for key in changes.revoked] == ["lab"] and not changes.reopen
    assert not access.admits(lab.pair.public) and access.admits(boss.pair.public)
    keyring.revoke("boss", now=True)
    changes = access.read_again(3.0)
    assert changes is not None and changes.reopen
    assert access.read_again(4.0) is None


def test_nothing_is_counted_against_whoever_is_not_listed(keyring: Keyring) -> None:
    lab, _ = keyring.new("lab", "worker")
    access = Access(keyring)
    for public in ("", KeyPair.new().public, lab.pair.public):
        access.offend(public, "no valid message", 0.0)
    assert list(access.conduct.to_plain(0.0)) == [lab.pair.public]


def test_a_list_that_cannot_be_read_changes_nothing(
    keyring: Keyring, caplog: pytest.LogCaptureFixture
) -> None:
    lab, _ = keyring.new("lab", "worker")
    access = Access(keyring)
    file = keyring.folder / "allowed.toml"
    for spoil in (lambda: file.write_text("["), lambda: file.chmod(0o644)):
        spoil()
        with caplog.at_level(logging.WARNING):
            access.read_again(float(file.stat().st_mode))
            access.read_again(1e9)
        assert access.admits(lab.pair.public)
    assert caplog.text.count("stays as it was") == 1


def test_a_list_that_could_not_be_read_is_read_later(
    keyring: Keyring, monkeypatch: pytest.MonkeyPatch
) -> None:
    lab, _ = keyring.new("lab", "worker")
    access = Access(keyring)
    keyring.revoke("lab")
    for call in ("open", "stat"):  # as without a descriptor, and where a shared disk has gone
        with monkeypatch.context() as unreachable:
            unreachable.setattr(Path, call, _refuse)
            with pytest.raises(UserError, match="cannot be read"):
                keyring.allowed()
    with monkeypatch.context() as unreachable:
        unreachable.setattr(Path, "open", _refuse)
        assert access.read_again(1.0) is None and access.admits(lab.pair.public)
    assert access.read_again(2.0) is not None and not access.admits(lab.pair.public)


def _refuse(*_: object, **__: object) -> None:
    raise OSError(errno.ESTALE, "Stale file handle")


def test_a_list_that_is_gone_lets_nobody_in(keyring: Keyring) -> None:
    lab, _ = keyring.new("lab", "worker")
    access = Access(keyring)
    (keyring.folder / "allowed.toml").unlink()
    access.read_again(1.0)
    assert not access.admits(lab.pair.public)


def test_who_is_expelled_stays_out_until_revoked_and_allowed_again(keyring: Keyring) -> None:
    lab, _ = keyring.new("lab", "worker")
    access = Access(keyring)
    assert access.passes(lab.pair.public, "control", 0.0)
    access.expel(lab.pair.public)
    assert not access.admits(lab.pair.public) and not access.passes(lab.pair.public, "control", 0.0)
    keyring.new("other", "worker")
    access.read_again(1.0)
    assert not access.admits(lab.pair.public)
    keyring.revoke("lab")
    access.read_again(2.0)
    keyring.allow("lab", "worker", lab.pair.public)
    access.read_again(3.0)
    assert access.admits(lab.pair.public)


def test_this_machines_own_keys_are_on_no_list(keyring: Keyring) -> None:
    own = Allowed("this machine", "operator", KeyPair.new().public)
    access = Access(keyring, [own])
    keyring.new("lab", "worker")
    access.read_again(1.0)
    assert access.commands(own.public)
    assert own.public not in keyring.allowed().keys
    access.offend(own.public, "no valid message", 1.0)
    assert access.to_plain(1.0) == [
        {
            "name": "this machine",
            "role": "operator",
            "points": 1.0,
            "offences": {"no valid message": 1},
            "throttled": False,
            "expelled": "",
        }
    ]
