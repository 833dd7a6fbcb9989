"""Hydra looks for launchers and sweepers here and nowhere else. Imports stay light: every start scans this."""
