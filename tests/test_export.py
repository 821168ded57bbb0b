"""A LAM's device side in other runtimes gives what torch gives, forward and backward."""

import copy
import functools
import itertools
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from airlam.errors import DataError, SpecError
from airlam.export import report
from airlam.export.device import DeviceSide, Links
from airlam.export.manifest import FORMATS, Mode, read_manifest
from airlam.export.node import ExportedPart, exported_node
from airlam.export.report import measure_export
from airlam.export.runtime import DeviceModules
from airlam.export.write import write_device
from airlam.model.build import lam_for
from airlam.model.lam import LAM
from airlam.radio.channel import PredictionSetting
from airlam.specs import ArraySpec, ModelSpec
from airlam.split.messages import Message
from airlam.split.node import SplitNode, nmse_loss
from airlam.split.part import LamPart
from airlam.split.plan import SplitPlan
from airlam.split.run import Session, chain_of
from airlam.split.transport import InProcess
from airlam.tokens.base import TokenBatch

FREQUENCIES_HZ = tuple(180e3 * i for i in range(6))
SETTING = PredictionSetting(
    base_station=ArraySpec(num_rows=2, num_cols=2),
    num_user_antennas=1,
    history_frequencies_hz=FREQUENCIES_HZ,
    target_frequencies_hz=FREQUENCIES_HZ,
    slot_duration_s=0.5e-3,
    num_history=4,
    num_horizon=2,
    max_doppler_hz=100.0,
)
NUM_LINKS, BATCH = 5, 2  # so that the last batch is not full
TOLERANCE = 1e-5
PACKAGES = {"litert": ("tensorflow", "ai_edge_litert"), "onnx": ("onnx", "onnxruntime")}
BLOCKS = ("block.0", "block.2", "norm")  # on the device, block.1 at the server


@functools.cache
def built(tokenizer: str) -> LAM:
    spec = ModelSpec(tokenizer=tokenizer, num_layers=3, lora_rank=2, num_paths=4)  # type: ignore[arg-type]
    lam = lam_for(spec, SETTING, 0)
    random = torch.Generator().manual_seed(5)
    for module in lam.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the files have none
    for parameter in lam.parameters():
        if parameter.requires_grad:  # a fresh adapter or head hides gradients
            parameter.data += 0.02 * torch.randn(parameter.shape, generator=random)
    return lam


@functools.cache
def links() -> Links:
    random = torch.Generator().manual_seed(0)
    history = torch.randn(NUM_LINKS, 4, 1, 4, 6, dtype=torch.complex64, generator=random)
    future = history[:, 2:] + 0.3 * torch.randn(history[:, 2:].shape, dtype=torch.complex64, generator=random)
    return Links(history=history, noise_variance=torch.full((NUM_LINKS,), 0.1), future=future)


Exported = Callable[..., Path]


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Folders by format, tokeniser and the device's blocks, each written once."""
    root = tmp_path_factory.mktemp("exported")

    def folder(to: str, tokenizer: str, blocks: tuple[str, ...] = ()) -> Path:
        for package in PACKAGES[to]:
            pytest.importorskip(package)
        place = root / f"{to}_{tokenizer}_{len(blocks)}"
        if not place.exists():
            side = DeviceSide(built(tokenizer), blocks)
            write_device(side, links(), place, name="lam", to=to, batch_size=BATCH)  # type: ignore[arg-type]
        return place

    return folder


CASES = [*itertools.product(FORMATS, ("patch", "path"), [()]), ("onnx", "patch", BLOCKS)]


@pytest.mark.parametrize("to, tokenizer, blocks", CASES)
@pytest.mark.parametrize("mode", ["inference", "training"])
def test_every_signature_gives_what_torch_gives(
    exported: Exported, to: str, tokenizer: str, blocks: tuple[str, ...], mode: Mode
) -> None:
    device = DeviceModules(exported(to, tokenizer, blocks), mode)
    signatures = DeviceSide(built(tokenizer), blocks).signatures(mode, links())
    written = [entry for entry in device.manifest.signatures if entry.mode == mode]
    assert [entry.name for entry in written] == [signature.name for signature in signatures]
    for entry, signature in zip(written, signatures, strict=True):
        wanted = signature.function(dict(signature.examples))
        names = [each.name for each in entry.inputs if not each.name.startswith("weight.")]
        got = device.run(entry.name, {name: signature.examples[name].numpy() for name in names})
        assert set(got) == set(wanted)
        for name, value in wanted.items():
            expected = value.detach()
            assert got[name].dtype == expected.numpy().dtype and got[name].shape == tuple(expected.shape)
            scale = max(1.0, float(expected.abs().max())) if expected.dtype != torch.bool else 1.0
            np.testing.assert_allclose(got[name], expected, rtol=0, atol=TOLERANCE * scale, err_msg=name)


def test_gradients_of_lora_come_from_blocks_on_the_device(exported: Exported) -> None:
    manifest = read_manifest(exported("onnx", "patch", BLOCKS))
    given = {each.name for each in manifest.signature("embed_step", "training").outputs}
    assert any("layer.0" in name and "lora_A" in name for name in given)
    assert not any("layer.1" in name or "layer.2" in name for name in given)


def test_tokens_that_are_not_real_change_nothing(exported: Exported) -> None:
    folder = exported("onnx", "patch", BLOCKS)
    device, side = DeviceModules(folder), DeviceSide(built("patch"), BLOCKS)
    tokens = built("patch").tokenizer.tokenise(links().history, links().noise_variance)
    mask = tokens.mask.clone()
    mask[:, ::3] = False
    wanted = side.embed({"features": tokens.features, "mask": mask})["hidden"].detach()
    got = device.run("embed", {"features": tokens.features.numpy(), "mask": mask.numpy()})["hidden"]
    real = mask.numpy()
    np.testing.assert_allclose(got[real], wanted.numpy()[real], atol=TOLERANCE)


def samples(tokenizer: str) -> TokenBatch:
    lam, given = built(tokenizer), links()
    return lam.tokenizer.with_target(
        lam.tokenizer.tokenise(given.history, given.noise_variance), given.future
    )


def session_of(lam: LAM, folder: Path | None) -> tuple[Session, InProcess]:
    """A device and a server; the device runs the files of a folder where there is one."""
    chain = chain_of(lam)
    plan = SplitPlan(
        replicas={n: ("server" if n.startswith(("block", "norm")) else "device",) for n in chain}
    )

    def sgd(parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        return torch.optim.SGD(parameters, lr=0.1)

    def make(name: str) -> SplitNode:
        if folder is not None and name == "device":
            return exported_node(name, lam, folder, sgd)
        return SplitNode(name, LamPart(lam, plan.modules_on(name)), nmse_loss, sgd)

    transport = InProcess(plan.nodes, make)
    return Session(lam, plan, transport), transport


@pytest.mark.parametrize("to, tokenizer", list(itertools.product(FORMATS, ("patch", "path"))))
def test_a_split_step_with_the_device_in_files_is_torchs(exported: Exported, to: str, tokenizer: str) -> None:
    folder = exported(to, tokenizer)
    results = []
    for place in (None, folder):
        lam = copy.deepcopy(built(tokenizer))
        session, _ = session_of(lam, place)
        session.hold("device", samples(tokenizer))
        found = session.forward_backward(0, {"device": torch.arange(NUM_LINKS)})
        assert not found.failures
        session.apply(found)
        output = session.predict(1, {"device": torch.arange(NUM_LINKS)})["device"]
        session.copy_into(lam, "device")
        results.append((found, output, {n: p.detach() for n, p in lam.named_parameters() if p.requires_grad}))
    (whole, output, weights), (ours, our_output, our_weights) = results
    # the posterior of a path head, in torch either way, magnifies what its inputs are rounded by
    tolerance = TOLERANCE if tokenizer == "patch" else 10 * TOLERANCE
    assert ours.loss == pytest.approx(whole.loss, rel=TOLERANCE)
    for node, norm in whole.gradient_norms["device"].items():
        assert ours.gradient_norms["device"][node] == pytest.approx(norm, rel=tolerance)
    for name, value in weights.items():
        assert (our_weights[name] - value).abs().max() <= tolerance * value.abs().max().clamp_min(1), name
    for name, value in output.items():
        assert (our_output[name] - value).abs().max() <= tolerance * value.abs().max()


def test_files_compute_what_the_device_does(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    """With torch's own modules out of order a round still comes through."""
    lam = copy.deepcopy(built("patch"))
    session, transport = session_of(lam, exported("onnx", "patch"))
    part = transport.nodes["device"].part
    assert isinstance(part, ExportedPart)
    for module in (part.lam.embedding, part.lam.heads["channel_prediction"]):
        monkeypatch.setattr(module, "forward", None)
    sent: list[Message] = []
    handle = transport.nodes["device"].handle
    monkeypatch.setattr(transport.nodes["device"], "handle", lambda m: sent.append(m) or handle(m))
    session.hold("device", samples("patch"))
    found = session.forward_backward(0, {"device": torch.tensor([3, 1, 4])})
    session.apply(found)
    assert not found.failures and np.isfinite(found.loss)
    assert [m.header.operation for m in sent] == ["hold", "forward", "forward", "backward", "step"]


@pytest.mark.parametrize("to", FORMATS)
def test_the_device_needs_neither_torch_nor_tensorflow(exported: Exported, to: str) -> None:
    """From a noisy history to the channel, and a training step, in a process of its own."""
    folder = exported(to, "patch")
    code = f"""
import sys
import numpy as np
from pathlib import Path
from airlam.export.runtime import DeviceModules
folder = Path({str(folder)!r})
device = DeviceModules(folder)
history = np.full((3, 4, 1, 4, 6), 1 + 1j, np.complex64)
tokens = device.run("tokenise", dict(history=history, noise_variance=np.full(3, 0.1, np.float32)))
hidden = device.run("embed", tokens)["hidden"]
future = device.run("predict", {{**tokens, "hidden": hidden}})
channel = device.run("channel", {{**tokens, **future}})["channel"]
assert channel.shape == (3, 2, 1, 4, 6) and channel.dtype == np.complex64 and np.isfinite(channel).all()
trained = DeviceModules(folder, "training")
target = np.repeat(tokens["context.patches"][:, :, -1:], 2, axis=2)
step = trained.run("head_step", {{**tokens, "hidden": hidden, "context.target": target,
                                 "sample_weight": np.full(3, 1 / 3, np.float32)}})
assert step["hidden_gradient"].shape == hidden.shape and step["loss"].shape == (3,)
heavy = {{"torch", "tensorflow", "keras", "transformers"}} & set(sys.modules)
sys.exit(f"imported {{heavy}}" if heavy else 0)
"""
    run = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr


def test_new_weights_are_taken_at_the_next_call(exported: Exported) -> None:
    device = DeviceModules(exported("onnx", "patch"), "training")
    hidden = np.ones((1, 24, 192), np.float32)
    patches = np.ones((1, 24, 4, 1), np.complex64)
    inputs = {"hidden": hidden, "context.patches": patches}
    before = device.run("predict", inputs)["future"]
    device.weights["heads.channel_prediction.correction.bias"][::2] += 1.0  # the real parts
    np.testing.assert_allclose(device.run("predict", inputs)["future"] - before, 1.0, atol=1e-5)


def test_what_a_signature_cannot_take_is_refused(exported: Exported) -> None:
    folder = exported("onnx", "patch")
    device = DeviceModules(folder)
    features = np.zeros((2, 24, 9), np.float32)
    with pytest.raises(DataError, match="no signature 'embed_step'"):
        device.run("embed_step", {})
    with pytest.raises(DataError, match="lacks 'features'"):
        device.run("embed", {})
    with pytest.raises(DataError, match="float64"):
        device.run("embed", {"features": features.astype(np.float64)})
    with pytest.raises(DataError, match="expected"):
        device.run("embed", {"features": features[:, :, :-1]})
    with pytest.raises(DataError, match="at least one"):
        device.run("embed", {"features": features[:0]})
    with pytest.raises(DataError, match="exists"):
        write_device(DeviceSide(built("patch")), links(), folder, name="x", to="onnx", batch_size=1)
    with pytest.raises(DataError, match="other weights"):
        exported_node("device", built("path"), folder, lambda p: torch.optim.SGD(p, lr=1.0))
    other = copy.deepcopy(built("patch"))
    other.backbone.model.get_submodule("embeddings.position_embeddings").weight.data += 1
    with pytest.raises(DataError, match="other frozen weights"):
        exported_node("device", other, folder, lambda p: torch.optim.SGD(p, lr=1.0))


def test_files_for_inference_need_no_other_weights(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "device"
    shutil.copytree(exported("onnx", "patch"), folder)
    (folder / "weights.safetensors").unlink()
    features, mask = np.zeros((2, 24, 9), np.float32), np.ones((2, 24), bool)
    DeviceModules(folder).run("embed", {"features": features, "mask": mask})
    with pytest.raises(DataError, match="cannot read weights"):
        DeviceModules(folder, "training")


def test_a_damaged_file_is_refused(exported: Exported, tmp_path: Path) -> None:
    folder = tmp_path / "copy"
    folder.mkdir()
    for path in exported("onnx", "patch").iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    DeviceModules(folder)
    (folder / "inference_embed.onnx").write_bytes(b"not this")
    with pytest.raises(DataError, match="not what was exported"):
        DeviceModules(folder)
    (folder / "device.json").write_text("{}")
    with pytest.raises(DataError, match="run airlam export"):
        DeviceModules(folder)


def test_the_server_keeps_a_piece_of_the_chain() -> None:
    with pytest.raises(SpecError, match="in a row"):
        DeviceSide(built("patch"), ["block.1"])
    with pytest.raises(SpecError, match="nothing is left"):
        DeviceSide(built("patch"), ["block.0", "block.1", "block.2", "norm"])
    with pytest.raises(SpecError, match="no module"):
        DeviceSide(built("patch"), ["block.7"])


def test_the_report_holds_sizes_errors_and_times(exported: Exported, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("airlam.export.report.NUM_CALLS", 2)
    folder = exported("onnx", "path")
    report = measure_export(DeviceSide(built("path")), links(), folder)
    assert report.max_error < TOLERANCE
    assert [each.name for each in report.signatures] == [
        "embed",
        "correct",
        "embed",
        "embed_step",
        "correct",
        "correct_step",
    ]
    assert report.file_bytes["inference_embed.onnx"] == (folder / "inference_embed.onnx").stat().st_size
    assert "posterior" in report.sentences[-1] and all(each.exported_ms > 0 for each in report.signatures)


def test_torchs_functions_are_made_once_for_each_mode(
    exported: Exported, monkeypatch: pytest.MonkeyPatch
) -> None:
    made, signatures = list[str](), DeviceSide.signatures
    monkeypatch.setattr(report, "NUM_CALLS", 1)
    monkeypatch.setattr(
        DeviceSide, "signatures", lambda side, mode, some: made.append(mode) or signatures(side, mode, some)
    )
    found = measure_export(DeviceSide(built("patch")), links(), exported("onnx", "patch"))
    assert made == ["inference", "training"] and len(found.signatures) > 4


@pytest.mark.parametrize("broken", [np.nan, np.inf])
def test_an_export_that_gives_no_numbers_is_refused(
    exported: Exported,
    monkeypatch: pytest.MonkeyPatch,
    broken: float,
) -> None:
    run = DeviceModules.run

    def spoilt(device: DeviceModules, name: str, inputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A single number of the last output."""
        found = run(device, name, inputs)
        if name == "head_step":
            list(found.values())[-1].flat[0] = broken
        return found

    monkeypatch.setattr(report, "NUM_CALLS", 1)
    monkeypatch.setattr(DeviceModules, "run", spoilt)
    with pytest.raises(DataError, match=r"head_step in .* gives NaN or infinity"):
        measure_export(DeviceSide(built("patch")), links(), exported("onnx", "patch"))


def test_the_largest_error_of_a_report_is_nan_where_any_is() -> None:
    errors = (0.0, float("nan"), 1.0)
    rows = tuple(
        report.SignatureReport(
            name="x", mode="inference", batch_size=1, max_error=error, exported_ms=1.0, torch_ms=1.0
        )
        for error in errors
    )
    whole = report.ExportReport(format="onnx", modules=(), left_to_torch="", file_bytes={}, signatures=rows)
    assert np.isnan(whole.max_error)
