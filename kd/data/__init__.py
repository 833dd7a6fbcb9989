"""Training data: conversations as ids, rows, windows, and blocks of plain text."""
