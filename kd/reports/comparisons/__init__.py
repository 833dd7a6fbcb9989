"""Tables that compare arms."""
