"""What does a run leave on disk? Checkpoints, logs, the lock and the folder around them."""
