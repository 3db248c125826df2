"""Which subcommands does `xclip` have? One module each, or a folder for a group."""
