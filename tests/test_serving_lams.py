"""Served together, LAMs give what each gives alone, and what they have in common is there once."""

import copy
import functools
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2Model, LlamaConfig, LlamaModel

from airlam.errors import SpecError
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.serving.lam_services import LamServices
from airlam.serving.measurement import Measurement
from airlam.serving.multi_lora import AdapterRows, LowRank, MultiLora
from airlam.serving.shared_backbone import frozen_parts
from airlam.serving.shared_tokens import for_setting
from airlam.specs import ArraySpec, ModelSpec
from airlam.tokens.path import PathTokenizer

FREQUENCIES_HZ = tuple(180e3 * i for i in range(8))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=1, num_cols=4),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=6,
    num_horizon=2,
    max_doppler_hz=200.0,
)
OTHER_BAND = replace(SETTING, target_frequencies_hz=tuple(f + 5e6 for f in FREQUENCIES_HZ))
SMALL = ModelSpec(num_layers=2, num_paths=5, lora_rank=3)


def tuned(spec: ModelSpec, setting: PredictionSetting, seed: int) -> LAM:
    """A LAM whose trainable weights have all moved, on a backbone that is the same for all seeds."""
    lam = lam_for(spec, setting, 1).eval()
    random = torch.Generator().manual_seed(seed)
    for parameter in lam.parameters():
        if parameter.requires_grad:
            parameter.data += 0.03 * torch.randn(parameter.shape, generator=random)
    return lam


@functools.cache
def alone() -> Mapping[str, LAM]:
    return {
        "a": tuned(SMALL, SETTING, 1),
        "b": tuned(replace(SMALL, lora_rank=2, lora_alpha=5.0), SETTING, 2),
        "fdd": tuned(replace(SMALL, num_paths=7), OTHER_BAND, 3),
        "untuned": tuned(replace(SMALL, tuning="head"), SETTING, 4),
    }


def measurements(*asked: tuple[str, int]) -> list[Measurement]:
    random = torch.Generator().manual_seed(7)
    return [
        Measurement(
            lam=name,
            history=torch.randn(num_links, 6, 1, 4, 8, dtype=torch.complex64, generator=random),
            noise_variance=0.05 + torch.rand(num_links, generator=random),
        )
        for name, num_links in asked
    ]


def predicted(lam: LAM, request: Measurement) -> torch.Tensor:
    with torch.no_grad():
        tokens = lam.tokenizer.tokenise(request.history, request.noise_variance)
        return lam.head().channel(lam(tokens), tokens.context)


def check_equal(lams: Mapping[str, LAM], requests: list[Measurement]) -> LamServices:
    services = LamServices(copy.deepcopy(dict(lams)))
    for request, future in zip(requests, services.predict(requests), strict=True):
        expected = predicted(lams[request.lam], request)
        assert future.shape == expected.shape
        # products of matrices round by the size of the batch
        assert (future - expected).abs().max() <= 3e-5 * expected.abs().max(), request.lam
    return services


def test_a_mixed_batch_equals_each_lam_alone() -> None:
    requests = measurements(("b", 1), ("a", 2), ("fdd", 3), ("a", 1), ("untuned", 2))
    check_equal(alone(), requests)
    check_equal(alone(), requests[:1])


def test_adapters_differ_within_one_batch() -> None:
    (request,) = measurements(("a", 1))
    services = LamServices(copy.deepcopy(dict(alone())))
    first, second = services.predict([request, replace(request, lam="b")])
    assert (first - second).abs().max() > 1e-3 * first.abs().max()


def test_equal_modules_are_one_service_and_loaded_once() -> None:
    services = LamServices(copy.deepcopy(dict(alone())))
    names = {service.name for service in services.graph.services}
    assert {"block.0", "block.1", "norm", "tokenizer.csi@a+b+untuned", "tokenizer.csi@fdd"} <= names
    assert {"embedding@a", "embedding@b", "head.channel_prediction@fdd"} <= names
    # tokeniser, embedding, two blocks, norm, head
    assert services.graph.num_monolithic == 4 * 6 and len(names) == 2 + 4 + 3 + 4


def test_a_shared_embedding_is_one_service() -> None:
    lams = {name: copy.deepcopy(alone()[name]) for name in ("a", "b")}
    lams["b"].embedding.load_state_dict(lams["a"].embedding.state_dict())
    services = check_equal(lams, measurements(("a", 1), ("b", 2)))
    assert services.graph.service_of("a", "embedding") == services.graph.service_of("b", "embedding")


def test_one_measurement_is_tokenised_once_for_lams_of_different_targets() -> None:
    far = replace(SETTING, num_horizon=4)
    lams = {
        "near": tuned(SMALL, SETTING, 1),
        "fdd": tuned(SMALL, OTHER_BAND, 2),
        "far": tuned(SMALL, far, 3),
    }
    (near, other) = measurements(("near", 2), ("fdd", 1))
    asked = [near, replace(near, lam="fdd"), other, replace(near, lam="far")]
    check_equal(lams, asked)
    links: dict[str, int] = {}
    services = LamServices(
        copy.deepcopy(lams), lambda name, num_links, duration_s: links.update({name: num_links})
    )
    services.predict(asked)
    assert links["tokenizer.csi"] == 3 and links["embedding@fdd"] == 3 and links["embedding@far"] == 2


def test_tokens_for_another_target_are_that_tokenisers_own() -> None:
    (asked,) = measurements(("a", 2))
    own, other = PathTokenizer(OTHER_BAND, 5), PathTokenizer(SETTING, 5)
    expected = own.tokenise(asked.history, asked.noise_variance)
    tokens = for_setting(other.tokenise(asked.history, asked.noise_variance), other, OTHER_BAND)
    torch.testing.assert_close(tokens.features, expected.features, rtol=0, atol=0)
    for name, value in expected.context.items():
        torch.testing.assert_close(tokens.context[name], value, rtol=0, atol=0)


def test_other_frozen_weights_are_not_shared() -> None:
    lams = {name: copy.deepcopy(alone()[name]) for name in ("a", "b")}
    frozen = next(
        p for n, p in lams["b"].backbone.named_parameters() if not p.requires_grad and "layer.1" in n
    )
    frozen.data[0] += 1e-3
    services = check_equal(lams, measurements(("a", 1), ("b", 1)))
    assert services.graph.service_of("a", "block.0") != services.graph.service_of("b", "block.0")


def test_a_fully_tuned_backbone_is_not_shared() -> None:
    lams = {name: tuned(replace(SMALL, tuning="full"), SETTING, seed) for seed, name in enumerate("ab")}
    services = check_equal(lams, measurements(("a", 1), ("b", 1)))
    assert services.graph.service_of("a", "block.0") != services.graph.service_of("b", "block.0")


@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_lams_of_different_depths_share_their_first_blocks(family: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    if family == "llama":
        llama = LlamaConfig(
            vocab_size=5, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=32
        )
        LlamaModel(llama).save_pretrained(tmp_path)
    else:
        GPT2Model(GPT2Config(vocab_size=5, n_embd=16, n_layer=3, n_head=2)).save_pretrained(tmp_path)
    whole = ModelSpec(backbone=str(tmp_path), num_paths=5, lora_rank=2)
    lams = {
        "shallow": tuned(replace(whole, num_layers=1), SETTING, 1),
        "deep": tuned(whole, SETTING, 2),
        "middle": tuned(replace(whole, num_layers=2), OTHER_BAND, 3),
    }
    services = check_equal(lams, measurements(("shallow", 2), ("middle", 1), ("deep", 1), ("shallow", 1)))
    assert {"block.0", "block.1@deep+middle", "block.2@deep", "norm"} <= {
        s.name for s in services.graph.services
    }


def test_an_adapter_does_not_change_what_frozen_weights_are_known_by() -> None:
    with_adapter, without = alone()["a"].backbone, alone()["untuned"].backbone
    assert frozen_parts(with_adapter) == frozen_parts(without)


def test_low_rank_products_touch_their_own_rows_only() -> None:
    random = torch.Generator().manual_seed(0)
    base = torch.nn.Linear(6, 4).requires_grad_(False)
    adapters = [
        LowRank(down=torch.randn(6, r, generator=random), up=torch.randn(r, 4, generator=random))
        for r in (1, 3)
    ]
    rows = AdapterRows()
    layer = MultiLora(base, [adapters[0], None, adapters[1]], rows)
    hidden = torch.randn(6, 5, 6, generator=random)
    with rows.split([1, 2, 3]):
        found = layer(hidden)
    expected = base(hidden)
    expected[:1] += hidden[:1] @ adapters[0].down @ adapters[0].up
    expected[3:] += hidden[3:] @ adapters[1].down @ adapters[1].up
    torch.testing.assert_close(found, expected)


def test_what_each_service_did_is_told() -> None:
    seen: dict[str, int] = {}
    services = LamServices(
        copy.deepcopy(dict(alone())), lambda name, links, duration_s: seen.update({name: links})
    )
    services.predict(measurements(("a", 2), ("b", 1)))
    assert seen["tokenizer.csi@a+b+untuned"] == 3 and seen["embedding@a"] == 2
    assert seen["head.channel_prediction@b"] == 1 and seen["block.1"] == seen["norm"] == 3


def test_no_lam_at_all_is_refused() -> None:
    with pytest.raises(SpecError, match="no LAM"):
        LamServices({})
