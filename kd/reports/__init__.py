"""Run folders read back: `runs` (tidy frames), `table` (one run), `sweep` (many). Imports no training code."""
