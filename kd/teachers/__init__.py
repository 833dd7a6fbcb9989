"""What is distilled from, and how deep it can be read."""
