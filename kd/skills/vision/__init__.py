"""Skills whose prompts have images."""
