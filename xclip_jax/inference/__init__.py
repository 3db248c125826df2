"""What does this video show? For people with a video and some labels."""
