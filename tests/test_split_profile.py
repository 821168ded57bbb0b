"""Profiles of LAMs against what the whole model does when it trains at once, and against counts by hand."""

import dataclasses
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config

from airlam.model.heads import PatchHead
from airlam.model.lam import LAM, build_lam, count_parameters
from airlam.model.path_head import PathHead
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec, ModelSpec
from airlam.split.flops import LiveBytes, flop_counter, saved_storages, storages
from airlam.split.graph import ModuleGraph
from airlam.split.part import owner_of
from airlam.split.profile import profile_lam
from airlam.tokens.base import CsiTokenizer, TokenBatch
from airlam.tokens.patch import PatchTokenizer
from airlam.tokens.path import PathTokenizer
from airlam.training.privacy import train_one_factor

FREQUENCIES_HZ = tuple(180e3 * i for i in range(12))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=2, num_cols=2),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=8,
    num_horizon=2,
    max_doppler_hz=150.0,
)
PATCHES = PatchTokenizer(SETTING, max_tokens=24)
BATCH = 6
LINKS = torch.randn(BATCH, 10, 1, 4, 12, dtype=torch.complex64, generator=torch.Generator().manual_seed(0))
HISTORY, FUTURE, NOISE = LINKS[:, :8], LINKS[:, 8:], torch.full((BATCH,), 0.1)
BACKBONES = ("small", "gpt2", "minilm")
TUNINGS = ("lora", "full")


def tokens_of(tokenizer: CsiTokenizer) -> TokenBatch:
    return tokenizer.with_target(tokenizer.tokenise(HISTORY, NOISE), FUTURE)


def shape_folder(tmp_path: Path, backbone: str) -> str:
    """A folder with the shape of GPT-2, or MiniLM, at fewer layers; weights are drawn."""
    if backbone == "gpt2":
        GPT2Config(n_embd=96, n_layer=2, n_head=4, vocab_size=10).save_pretrained(tmp_path)
        return str(tmp_path)
    if backbone == "minilm":
        from transformers import BertConfig

        BertConfig(
            hidden_size=384, intermediate_size=1536, num_hidden_layers=2, vocab_size=10
        ).save_pretrained(tmp_path)
        return str(tmp_path)
    return backbone


def lam_of(tmp_path: Path, backbone: str, tuning: str, *, rank: int = 8) -> LAM:
    spec = ModelSpec(
        backbone=shape_folder(tmp_path, backbone),
        tokenizer="patch",
        tuning=tuning,  # type: ignore[arg-type]
        num_layers=2,
        lora_rank=rank,
        random_weights=True,
    )
    return build_lam(spec, PATCHES, lambda width: PatchHead(PATCHES, width))


def freeze(lam: LAM, module: str) -> None:
    for name, parameter in lam.named_parameters():
        parameter.requires_grad_(parameter.requires_grad and owner_of(lam, name) != module)


def loaded(lam: LAM, graph: ModuleGraph) -> ModuleGraph:
    return graph.at_ranks({m.name: lam.spec.lora_rank for m in graph.modules if m.lora is not None})


def whole(lam: LAM, tokens: TokenBatch) -> dict[str, float]:
    """FLOPs and kept bytes of one training step of the model as a whole."""
    lam.train()
    saved: dict[int, int] = {}
    with flop_counter() as forward, saved_storages(saved), LiveBytes() as live:
        output = lam(tokens)
    kept = saved | {key: n for key, n in live.living().items() if key not in storages(output)}
    for own in storages([*lam.parameters(), *lam.buffers()]):
        kept.pop(own, None)
    wanted = [p for p in lam.parameters() if p.requires_grad]
    with flop_counter() as backward:
        torch.autograd.grad(lam.head().squared_error(output, tokens.context)[0].sum(), wanted)
    return {
        "forward_flops": forward.get_total_flops(),
        "backward_flops": backward.get_total_flops(),
        "activation_bytes": sum(kept.values()),
    }


@pytest.mark.parametrize("tuning", TUNINGS)
@pytest.mark.parametrize("backbone", BACKBONES)
def test_modules_add_up_to_the_whole_model(tmp_path: Path, backbone: str, tuning: str) -> None:
    lam = lam_of(tmp_path, backbone, tuning)
    graph = loaded(lam, profile_lam(lam, tokens_of(PATCHES)))
    measured = whole(lam, tokens_of(PATCHES))
    for key, value in measured.items():
        assert sum(getattr(m, key) for m in graph.modules) == pytest.approx(value, rel=0.05), key
    counted = count_parameters(lam)
    assert sum(m.parameter_bytes for m in graph.modules) == 4 * counted.total
    assert sum(m.trainable_bytes for m in graph.modules) == 4 * counted.trainable
    assert sum(m.optimiser_bytes for m in graph.modules) == 8 * counted.trainable


@pytest.mark.parametrize("tuning", TUNINGS)
def test_path_tokens_and_our_backbone_add_up_too(tuning: str) -> None:
    tokenizer = PathTokenizer(SETTING, num_paths=6)
    spec = ModelSpec(backbone="airlam", tuning=tuning)  # type: ignore[arg-type]
    lam = build_lam(spec, tokenizer, lambda width: PathHead(SETTING, width))
    tokens = tokens_of(tokenizer)
    graph = loaded(lam, profile_lam(lam, tokens))
    for key, value in whole(lam, tokens).items():
        assert sum(getattr(m, key) for m in graph.modules) == pytest.approx(value, rel=0.1), key


def test_peak_memory_of_a_step_is_what_the_graph_says(tmp_path: Path) -> None:
    """Weights are there before; gradients take the place of activations as these are freed."""
    lam = lam_of(tmp_path, "minilm", "full").train()
    graph = profile_lam(lam, tokens_of(PATCHES))
    tokens = tokens_of(PATCHES)
    with LiveBytes() as live:
        lam.head().squared_error(lam(tokens), tokens.context)[0].sum().backward()
    activations = sum(m.activation_bytes for m in graph.modules)
    gradients = sum(m.trainable_bytes for m in graph.modules)
    assert max(activations, gradients) <= live.peak <= 1.1 * (activations + gradients)


def test_peak_memory_of_inference_is_the_largest_working_set(tmp_path: Path) -> None:
    lam, tokens = lam_of(tmp_path, "minilm", "lora").eval(), tokens_of(PATCHES)
    graph = profile_lam(lam, tokens)
    with torch.no_grad(), LiveBytes() as live:
        lam.backbone(lam.embedding(tokens.features), tokens.mask)
    largest = max(m.working_bytes for m in graph.modules if not m.name.startswith("head"))
    assert largest == pytest.approx(live.peak, rel=0.1)


def test_flops_of_a_bert_block_by_hand(tmp_path: Path) -> None:
    lam = lam_of(tmp_path, "minilm", "full")
    block = profile_lam(lam, tokens_of(PATCHES)).by_name["block.0"]
    num_tokens, width = tokens_of(PATCHES).features.shape[1], 384
    rows = BATCH * num_tokens
    assert block.forward_flops == 24 * rows * width**2 + 4 * rows * num_tokens * width
    assert block.backward_flops == pytest.approx(2 * block.forward_flops, rel=0.05)  # attention is redone
    assert block.output_bytes == 4 * rows * width


@pytest.mark.parametrize("one_factor", [False, True])
@pytest.mark.parametrize("backbone", ["small", "gpt2"])
def test_ranks_not_profiled_are_foretold(tmp_path: Path, backbone: str, one_factor: bool) -> None:
    first, other = (lam_of(tmp_path, backbone, "lora", rank=rank) for rank in (4, 16))
    for lam in (first, other) if one_factor else ():
        train_one_factor(lam)
    profiled = profile_lam(first, tokens_of(PATCHES))
    measured = loaded(other, profile_lam(other, tokens_of(PATCHES)))
    foretold = profiled.at_ranks({"block.0": 16, "block.1": 16})
    for name in ("block.0", "block.1"):
        assert dataclasses.replace(foretold.by_name[name], working_bytes=0) == dataclasses.replace(
            measured.by_name[name], working_bytes=0
        )


def test_one_factor_trains_less(tmp_path: Path) -> None:
    lam = lam_of(tmp_path, "small", "lora")
    both = loaded(lam, profile_lam(lam, tokens_of(PATCHES)))
    train_one_factor(lam)
    one = loaded(lam, profile_lam(lam, tokens_of(PATCHES)))
    own = sum(
        p.nbytes for n, p in lam.named_parameters() if p.requires_grad and owner_of(lam, n) == "block.0"
    )
    assert one.by_name["block.0"].trainable_bytes == own < both.by_name["block.0"].trainable_bytes
    assert one.by_name["block.0"].parameter_bytes == both.by_name["block.0"].parameter_bytes
    assert sum(m.backward_flops for m in one.modules) == pytest.approx(
        whole(lam, tokens_of(PATCHES))["backward_flops"], rel=0.02
    )


def test_a_frozen_embedding_spares_gradients(tmp_path: Path) -> None:
    lam = lam_of(tmp_path, "small", "lora")
    trained = profile_lam(lam, tokens_of(PATCHES))
    freeze(lam, "embedding")
    frozen = profile_lam(lam, tokens_of(PATCHES))
    assert ("embedding", "block.0") in trained.gradient_edges
    assert ("embedding", "block.0") not in frozen.gradient_edges
    assert frozen.by_name["embedding"].backward_flops == frozen.by_name["embedding"].activation_bytes == 0
    assert frozen.by_name["block.0"].backward_flops < trained.by_name["block.0"].backward_flops
    measured = whole(lam, tokens_of(PATCHES))
    assert sum(m.backward_flops for m in loaded(lam, frozen).modules) == pytest.approx(
        measured["backward_flops"], rel=0.05
    )


def test_payloads_are_what_the_modules_give(tmp_path: Path) -> None:
    lam, tokens = lam_of(tmp_path, "small", "lora"), tokens_of(PATCHES)
    graph = profile_lam(lam, tokens)
    edges = {edge.key: edge for edge in graph.edges}
    rows = tokens.features.shape[0] * tokens.features.shape[1]
    first = edges["embedding", "block.0"]
    assert (first.num_elements, first.num_rows, first.fixed_bytes) == (rows * lam.backbone.width, rows, rows)
    assert edges["norm", "head.channel_prediction"].fixed_bytes == 0
    aside = edges["tokenizer.csi", "head.channel_prediction"]
    context = [value for name, value in tokens.context.items() if name != "target"]
    assert aside.fixed_bytes == sum(value.numel() * value.element_size() for value in context)
    assert graph.batch_size == BATCH


def test_batches_are_proportional(tmp_path: Path) -> None:
    lam, tokens = lam_of(tmp_path, "small", "lora"), tokens_of(PATCHES)
    scaled = profile_lam(lam, tokens.select(torch.arange(2))).for_batch(BATCH)
    measured = profile_lam(lam, tokens)
    for name in ("block.0", "head.channel_prediction"):
        for key in ("forward_flops", "backward_flops", "activation_bytes"):
            assert getattr(scaled.by_name[name], key) == pytest.approx(
                getattr(measured.by_name[name], key), rel=0.02
            )


def test_the_tokeniser_counts_where_a_history_is_given(tmp_path: Path) -> None:
    lam = lam_of(tmp_path, "small", "lora")
    graph = profile_lam(lam, tokens_of(PATCHES), history=HISTORY, noise_variance=NOISE)
    assert graph.by_name["tokenizer.csi"].forward_flops > 0
    assert graph.by_name["tokenizer.csi"].modality == "csi"
    assert not graph.by_name["tokenizer.csi"].trains


def test_profiling_leaves_no_trace(tmp_path: Path) -> None:
    lam = lam_of(tmp_path, "small", "lora").eval()
    lam.embedding.train()
    weights = {name: value.clone() for name, value in lam.state_dict().items()}
    state = torch.get_rng_state()
    profile_lam(lam, tokens_of(PATCHES))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(value, weights[name]) for name, value in lam.state_dict().items())
    assert all(p.grad is None for p in lam.parameters())
    assert lam.embedding.training
    assert not lam.backbone.training


def test_complex_products_and_factorisations_count() -> None:
    matrix = torch.eye(5, dtype=torch.complex64).repeat(3, 1, 1)
    with flop_counter() as product:
        _ = matrix @ matrix
    assert product.get_total_flops() == 3 * 8 * 5**3
    with flop_counter() as factor:
        lower = torch.linalg.cholesky(matrix.real)
    assert factor.get_total_flops() == round(3 * 5**3 / 3)
    with flop_counter() as solve:
        torch.cholesky_solve(torch.ones(3, 5, 2), lower)
    assert solve.get_total_flops() == 2 * 3 * 5**2 * 2
    with flop_counter() as transform:
        torch.fft.fft(torch.ones(7, 8, dtype=torch.complex64))
    assert transform.get_total_flops() == 5 * 7 * 8 * 3
