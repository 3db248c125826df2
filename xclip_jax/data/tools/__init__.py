"""What is done to a data set before a run? Checks, derived lists, prepared shards."""
