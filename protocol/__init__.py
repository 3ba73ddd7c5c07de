"""What crosses a wire between the learner and its rollout workers, and nothing else."""

VERSION = "0.1.0"
"""Of this release: all packages of a fleet carry it."""

PROTOCOL_MAJOR = 1
"""A peer with another major version is refused."""

PROTOCOL_MINOR = 1
"""Raised when a field with a default is added at the end of a message; any minor version is accepted."""
