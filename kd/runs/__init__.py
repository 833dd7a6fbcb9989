"""The run folder and its pages: the contract between training and everything that reads."""
