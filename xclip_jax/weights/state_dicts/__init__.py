"""Which of a file's tensors are the model's, and what are they called without wrappers?"""
