"""Instructions whose following a program can verify: those of IFEval and IFBench."""
