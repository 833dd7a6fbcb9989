"""Expansion: new prompts that a teacher makes of the given ones (arXiv 2402.13116, section 3.1.2)."""
