"""How good is a model? From a list of videos to scores, numbers and a comparison."""
