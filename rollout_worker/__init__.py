"""Everything that a worker host runs. No torch."""
