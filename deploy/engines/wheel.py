"""The wheel of the package that is running, made from its own files: no build tools, same bits each time.

A wheel is an archive of packages and of what is known of them (PyPA's "binary distribution format").
"""

from __future__ import annotations

import hashlib
import io
import zipfile
from base64 import urlsafe_b64encode
from dataclasses import dataclass
from importlib import import_module, metadata
from pathlib import Path

import protocol
from protocol.errors import UserError

_PACKAGES = ("deploy", "learner", "protocol", "rollout_worker")
_TAG = "Wheel-Version: 1.0\nGenerator: rollout-fleet\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
_EPOCH = (1980, 1, 1, 0, 0, 0)


@dataclass(frozen=True, slots=True)
class Package:
    """A file that pip can install."""

    file_name: str
    content: bytes

    @property
    def build(self) -> str:
        """What tells it from another of the same version."""
        return hashlib.sha256(self.content).hexdigest()[:12]


def read_package(path: Path) -> Package:
    """Return a wheel, or an archive of the sources, that the user made. UserError where it is none."""
    if not path.name.endswith((".whl", ".tar.gz", ".zip")):
        raise UserError(f"{path} is no wheel (.whl) and no archive of the sources (.tar.gz)")
    try:
        return Package(path.name, path.read_bytes())
    except OSError as error:
        raise UserError(f"{path}: {error.strerror}, which `wheel` names") from None


def running_package() -> Package:
    """Return a wheel of what is running. UserError where it is not known what it needs."""
    try:
        known = metadata.distribution("rollout-fleet")
    except metadata.PackageNotFoundError:
        raise UserError("rollout-fleet is not installed here, so name its wheel: wheel = FILE") from None
    about = known.read_text("METADATA") or known.read_text("PKG-INFO") or ""
    information = f"rollout_fleet-{known.version}.dist-info"
    files = {
        f"{name}/{path.relative_to(root)}": path.read_bytes()
        for name in _PACKAGES
        for root in [Path(str(import_module(name).__file__)).parent]
        for path in sorted(root.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    files |= {
        f"{information}/METADATA": about.encode(),
        f"{information}/WHEEL": _TAG.encode(),
        f"{information}/entry_points.txt": (known.read_text("entry_points.txt") or "").encode(),
    }
    lines = [f"{name},sha256={_digest(content)},{len(content)}" for name, content in files.items()]
    files[f"{information}/RECORD"] = "\n".join([*lines, f"{information}/RECORD,,", ""]).encode()
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, content in files.items():
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.external_attr = 0o644 << 16
            wheel.writestr(entry, content, zipfile.ZIP_DEFLATED)
    return Package(f"rollout_fleet-{protocol.VERSION}-py3-none-any.whl", archive.getvalue())


def _digest(content: bytes) -> str:
    return urlsafe_b64encode(hashlib.sha256(content).digest()).rstrip(b"=").decode()
