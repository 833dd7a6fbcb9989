"""Skills with problems and texts that are drawn by rules of this project."""
