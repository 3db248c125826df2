"""Comparisons with PyTorch: the only folder that imports torch; see `python -m convert --help`."""
