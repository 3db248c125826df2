"""How does a file become exactly the frames that were asked for?"""
