"""Tables of papers beside those of our runs."""
