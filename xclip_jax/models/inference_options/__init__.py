"""What trades accuracy for speed at inference?"""
