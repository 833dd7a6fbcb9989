"""What runs in a vLLM server's own processes, without the project: its folder is on the server's PYTHONPATH."""
