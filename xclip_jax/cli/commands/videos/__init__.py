"""What does a video show? Subcommands that apply a model to videos and labels."""
