"""What do the JSON files beside weights say? Followed, known not to matter, or refused by name."""
