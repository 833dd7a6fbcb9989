"""Teachers, and the outputs that each of them provides."""
