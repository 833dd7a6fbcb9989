"""Curation: new records made of topics, documents, snippets, labels or personas (arXiv 2402.13116, section 3.1.3)."""
