"""How do frames become batches? Sampling, augmentation, and the pipeline over processes."""
