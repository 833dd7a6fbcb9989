"""What is measured: the table of metrics."""
