"""How do weights come in from anywhere, and go back out?"""
