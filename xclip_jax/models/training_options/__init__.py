"""What is part of the parameters in training only?"""
