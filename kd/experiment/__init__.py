"""A composed config's run: prepared, built, trained, evaluated, exported."""
