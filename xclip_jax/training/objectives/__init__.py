"""What does a training step minimise?"""
