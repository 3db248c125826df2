"""What is a run? From a config and a folder to trained weights, numbers and a report."""
