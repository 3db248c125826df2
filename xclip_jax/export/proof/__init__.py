"""How is an export shown to be equal to the model, and what does it cost?"""
