"""A look into a dataset, as panels of plain arrays; ``airlam.portrait_picture`` draws them."""

from airlam.datasets.portrait.compose import portrait

__all__ = ["portrait"]
