"""The large AI model (LAM) as a graph of named modules."""
