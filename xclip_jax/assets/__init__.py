"""Which files does the package bring along? Vocabulary, sample clips, a small trained model."""
