"""A predictor's error on noisy views of links."""

import torch

from airlam.radio.prediction.base import Predictor
from airlam.tasks.channel_prediction import NoisyViews

_AT_ONCE = 64


def predictor_nmse(predictor: Predictor, views: NoisyViews) -> float:
    """Error energy over target energy of all views together."""
    error = energy = 0.0
    for index in torch.split(torch.arange(len(views)), _AT_ONCE):
        links = views.batch(index)
        found = predictor.predict(links.history, links.noise_variance)
        error += float((found - links.future).abs().square().sum())
        energy += float(links.future.abs().square().sum())
    return error / energy
