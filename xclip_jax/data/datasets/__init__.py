"""Which videos are there? Lists, public data sets, folders, TFDS, and the synthetic set."""
