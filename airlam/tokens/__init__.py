"""CSI and sensor readings to tokens, and back."""
