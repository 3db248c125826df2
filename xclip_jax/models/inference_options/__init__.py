"""Which options trade accuracy for speed at inference? Token merging and 8-bit kernels."""
