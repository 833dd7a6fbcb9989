"""The bench on which LLM distillation methods are compared fairly."""

__version__ = "0.1.0"
