"""Where bytes come from: the hub, local folders, wheels and source distributions, pinned by content."""
