"""The subcommands of `fleet`, a module each."""
