"""Options of engines, as they were written to a disk."""

from __future__ import annotations

import pytest

from deploy.engines.catalogue import fit_options
from deploy.engines.local import LocalOptions
from protocol.errors import UserError


def test_options_of_another_release_are_told() -> None:
    assert fit_options("local", {"pin": True}) == LocalOptions(pin=True)
    with pytest.raises(UserError, match="another release"):
        fit_options("local", {"pinned": True})
