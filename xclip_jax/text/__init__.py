"""How do words become token ids and text features? By prompts and CLIP's tokenizer."""
