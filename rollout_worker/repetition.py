"""Whether a ticket came out the same twice: an environment that does not reset fully gives itself away."""

from __future__ import annotations

from itertools import zip_longest

from protocol.messages import Episode, Failure


def compared(first: Episode, second: Episode) -> Episode | Failure:
    """Return the first of two episodes of one ticket if they are equal to the bit. Step 0 is the reset."""
    pairs = zip_longest(_steps(first), _steps(second))
    differing = next((number for number, (one, other) in enumerate(pairs) if one != other), None)
    if differing is None:
        return first
    reason = f"ticket {first.ticket} differs at step {differing} when played again"
    return Failure(first.ticket, f"the environment does not reset fully: {reason}", final=True)


def _steps(episode: Episode) -> list[tuple[bytes, ...]]:
    """Return all that each step did and showed, the reset first and how it ended last."""
    shown = [observation.tobytes() for observation in episode.observations]
    arrays = (episode.actions, episode.rewards, episode.log_probs)
    done = [tuple(array[step].tobytes() for array in arrays) for step in range(episode.length)]
    steps = [(shown[0],), *((seen, *did) for seen, did in zip(shown[1:], done, strict=True))]
    return [*steps[:-1], (*steps[-1], bytes([episode.terminated]))]
