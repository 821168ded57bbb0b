"""Sensor embeddings: missing tokens have no say, links keep apart, parts equal the whole."""

import dataclasses

import pytest
import torch

from airlam.model.backbone import build_backbone, seeded
from airlam.model.chain import Backbone
from airlam.model.sensor_embedding import SensorEmbedding
from airlam.specs import (
    ArraySpec,
    BeamSensorSpec,
    CameraSpec,
    ChannelSpec,
    DatasetSpec,
    GridSpec,
    InertialSensorSpec,
    MobilitySpec,
    ModelSpec,
    PositionSensorSpec,
    SensorsSpec,
    SiteSpec,
)
from airlam.tokens.modality import ModalityTokens
from airlam.tokens.sensors import SensorTokenizer

LINKS = 5
SPEC = DatasetSpec(
    name="fake",
    channel=ChannelSpec(model="ray_traced", carrier_frequency_hz=3.5e9),
    base_station=ArraySpec(num_cols=4),
    site=SiteSpec(scene="fake", base_station_position_m=(0.0, 0.0, 20.0)),
    sensors=SensorsSpec(
        position=PositionSensorSpec(),
        inertial=InertialSensorSpec(),
        camera=CameraSpec(width_px=32, height_px=32),
        beams=BeamSensorSpec(num_beams=8, num_past=3),
    ),
    mobility=MobilitySpec(min_speed_m_per_s=1.0, max_speed_m_per_s=10.0),
    grid=GridSpec(subcarrier_spacing_hz=30e3, num_uplink_subcarriers=4),
)
TOKENIZER = SensorTokenizer.from_spec(SPEC)

Tokens = dict[str, ModalityTokens]


def tokens(links: int = LINKS) -> Tokens:
    generator = torch.Generator().manual_seed(4)
    return {
        name: ModalityTokens(
            features=torch.randn(links, count, TOKENIZER.num_features[name], generator=generator),
            mask=torch.ones(links, count, dtype=torch.bool),
        )
        for name, count in TOKENIZER.num_tokens.items()
    }


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone(build_backbone(ModelSpec(backbone="small", num_layers=2)), ordered=False).eval()


@pytest.fixture(scope="module")
def embedding(backbone: Backbone) -> SensorEmbedding:
    with seeded(0):
        return SensorEmbedding(TOKENIZER, backbone.width)


def without(given: Tokens, name: str) -> Tokens:
    return given | {name: given[name].kept(torch.zeros(len(given[name]), dtype=torch.bool))}


def output(embedding: SensorEmbedding, backbone: Backbone, given: Tokens) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = backbone(*embedding(given))
    return result


def test_every_token_has_its_place(embedding: SensorEmbedding, backbone: Backbone) -> None:
    given = tokens()
    hidden, mask = embedding(given)
    total = 1 + sum(TOKENIZER.num_tokens.values())
    assert hidden.shape == (LINKS, total, backbone.width) and mask.shape == (LINKS, total) and mask.all()
    for name, place in embedding.places.items():
        torch.testing.assert_close(hidden[:, place], embedding.modalities[name](given[name]))


def test_the_parts_joined_are_the_whole(embedding: SensorEmbedding) -> None:
    given = without(tokens(), "beams")
    parts = {name: module(given[name]) for name, module in embedding.modalities.items()}
    joined = embedding.join(parts, {name: t.mask for name, t in given.items()})
    for part, whole in zip(joined, embedding(given), strict=True):
        assert torch.equal(part, whole)


@pytest.mark.parametrize("name", TOKENIZER.modalities)
def test_masked_tokens_have_no_say(embedding: SensorEmbedding, backbone: Backbone, name: str) -> None:
    """Whatever stands in a masked token, what comes out of the real ones is the same."""
    given = without(tokens(), name)
    other = given | {
        name: dataclasses.replace(given[name], features=torch.full_like(tokens()[name].features, 9.0))
    }
    mask = embedding(given)[1]
    first, second = (output(embedding, backbone, t)[mask] for t in (given, other))
    assert torch.equal(first, second)
    assert not torch.allclose(first, output(embedding, backbone, tokens())[mask], atol=1e-3)  # it had one


def test_a_missing_modality_is_as_if_it_had_never_been(
    embedding: SensorEmbedding, backbone: Backbone
) -> None:
    given, place = without(tokens(), "camera"), embedding.places["camera"]
    hidden, mask = embedding(given)
    shorter = [torch.cat([x[:, : place.start], x[:, place.stop :]], dim=1) for x in (hidden, mask)]
    with torch.no_grad():
        expected = backbone(*shorter)
    torch.testing.assert_close(
        output(embedding, backbone, given)[mask], expected[shorter[1]], rtol=1e-4, atol=1e-5
    )


def test_one_links_missing_sensor_is_no_other_links_matter(
    embedding: SensorEmbedding, backbone: Backbone
) -> None:
    given = tokens()
    keep = torch.tensor([True, False, True, True, True])
    lossy = {name: t.kept(keep) for name, t in given.items()}
    whole, partly = output(embedding, backbone, given), output(embedding, backbone, lossy)
    torch.testing.assert_close(whole[keep], partly[keep], rtol=1e-4, atol=1e-5)
    assert torch.isfinite(partly).all()  # the link without any sensor included


def test_permuting_links_permutes_outputs(embedding: SensorEmbedding, backbone: Backbone) -> None:
    given, order = tokens(), torch.tensor([3, 1, 4, 0, 2])
    turned = {name: t.select(order) for name, t in given.items()}
    torch.testing.assert_close(
        output(embedding, backbone, turned), output(embedding, backbone, given)[order], rtol=1e-4, atol=1e-5
    )


def test_the_same_features_elsewhere_are_told_apart(embedding: SensorEmbedding) -> None:
    same = tokens()["beams"]
    same = dataclasses.replace(same, features=same.features[:, :1].expand(-1, 3, -1))
    hidden = embedding.modalities["beams"](same)
    assert not torch.allclose(hidden[:, 0], hidden[:, 1])


def test_only_modalities_that_are_there_learn(embedding: SensorEmbedding, backbone: Backbone) -> None:
    embedding.zero_grad()
    backbone(*embedding(without(tokens(), "inertial")))[:, 0].square().sum().backward()
    for name, parameter in embedding.named_parameters():
        assert parameter.grad is not None
        assert bool((parameter.grad != 0).any()) == ("inertial" not in name), name
