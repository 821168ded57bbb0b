"""Pure maths on channels: transforms, errors, rates, precoders, classical predictors."""
