"""Pure functions of rows that measure models."""
