"""Sources of files: the hub, local folders, wheels and source distributions, pinned by content."""
