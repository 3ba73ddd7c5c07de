"""The policies that come with this release: `pretrained:NAME`, a file of arrays and a card each."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from deploy.playable import Playable
from deploy.runs import PRETRAINED
from protocol.errors import UserError

FOLDER = Path(__file__).parent


def shipped(folder: Path = FOLDER) -> list[str]:
    """Return the names of the policies that come with this release."""
    return sorted(file.stem for file in folder.glob("*.safetensors"))


def load(name: str, folder: Path = FOLDER) -> Playable:
    """Return a shipped policy. Raises UserError for an unknown name, naming those shipped, and for damage."""
    from deploy.pretrained.policy_file import read

    known = shipped(folder)
    if name not in known:
        near = get_close_matches(name.lower().replace("_", "-"), [k.replace("_", "-") for k in known], n=1)
        meant = [f"did you mean {PRETRAINED}{k}? " for k in known if [k.replace("_", "-")] == near]
        ships = f"this release ships {', '.join(known)}" if known else "this release ships none"
        raise UserError(f"no policy {PRETRAINED}{name}: {''.join(meant)}{ships}")
    return read(folder / f"{name}.safetensors")


def resolve(text: str) -> Playable:
    """Return what `pretrained:NAME`, a policy's file, a checkpoint, or a run for its best version plays.

    Raises UserError where it is none of these, or damaged.
    """
    from deploy.pretrained.policy_file import read
    from deploy.runs import best_checkpoint

    if text.startswith(PRETRAINED):
        return load(text.removeprefix(PRETRAINED))
    if text.endswith(".safetensors"):
        return read(Path(text))
    from learner.checkpoints import load as load_checkpoint

    return Playable.of(load_checkpoint(best_checkpoint(text)))
