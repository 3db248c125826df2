"""Which subcommands are there? One file for each."""
