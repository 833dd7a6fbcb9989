"""The run folder and its files: the contract between training and everything that reads them."""
