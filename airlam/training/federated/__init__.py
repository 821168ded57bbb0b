"""Devices of a network fine-tune a LAM together: split or whole, scheduled, over links that take time."""
