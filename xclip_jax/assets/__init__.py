"""Which files does the package bring along? Vocabulary, samples, a small trained model."""
