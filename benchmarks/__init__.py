"""Measurements against other libraries; `python -m benchmarks.head`, `python -m benchmarks.step`."""
