"""What does the `xclip` command do? It reads options, calls the folders below, and prints."""
