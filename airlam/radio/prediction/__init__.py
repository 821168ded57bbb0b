"""Classical channel predictors: the bar that a learned one has to clear."""
