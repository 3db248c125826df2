"""What does the `xclip` command do? It reads options, calls the house below, and prints."""
