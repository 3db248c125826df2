"""Which parameters exist in training only? The projectors of distillation."""
