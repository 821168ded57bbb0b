"""Large AI models on the radio link: from Sionna channels to the gain on the link."""

__version__ = "0.1.0"
