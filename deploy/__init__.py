"""How processes get onto machines, and the `fleet` command."""
