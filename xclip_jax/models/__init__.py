"""What is the model? X-CLIP in Flax linen: its sizes, towers, heads and layers."""
