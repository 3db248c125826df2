"""Commands that move weights between frameworks and prove it; see `python -m convert --help`."""
