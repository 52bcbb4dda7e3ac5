"""One call to a model, from admission to its end in the log."""
