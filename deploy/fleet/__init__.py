"""Fleets: what a file wants, what a supervisor sees, and how the one becomes the other."""
