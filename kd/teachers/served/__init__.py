"""A teacher in a process of its own, on another device or machine, that returns last hidden states over HTTP."""
