"""The teacher's coordinates (tokens, vocabulary) turned into the student's."""
