"""Weights & Biases: runs as it shows them, and the dashboard that compares them."""
