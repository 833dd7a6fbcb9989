"""Skills whose problems and texts are drawn by rules of this project."""
