"""Which other programs can read our weights? Hugging Face's, the reference's, OpenAI's CLIP."""
