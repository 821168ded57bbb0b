"""Each operation that is written for other runtimes does what torch's does, on real and complex numbers."""

import functools
from collections.abc import Callable

import numpy as np
import pytest
import scipy.special
import torch
from torch import nn

from airlam.errors import SpecError
from airlam.export.arithmetic import transform_matrix
from airlam.export.litert_file import litert_bytes
from airlam.export.onnx_file import onnx_bytes
from airlam.export.trace import State, Traced, trace

RANDOM = torch.Generator().manual_seed(3)
X = torch.randn(3, 4, 6, generator=RANDOM)
Y = torch.randn(3, 4, 6, generator=RANDOM)
Z = torch.randn(3, 4, 6, dtype=torch.complex64, generator=RANDOM)
W = torch.randn(3, 6, 5, dtype=torch.complex64, generator=RANDOM)
MASK = X > 0.2

Function = Callable[..., torch.Tensor]


def gradient(function: Function) -> Function:
    """That of the sum of |f|^2."""

    def of(x: torch.Tensor) -> torch.Tensor:
        x = x.detach().requires_grad_()
        return torch.autograd.grad(function(x).abs().square().sum(), x)[0]

    return of


NORM = nn.LayerNorm(6).requires_grad_(False)
FUNCTIONS: dict[str, tuple[Function, tuple[torch.Tensor, ...]]] = {
    "erf": (torch.erf, (4 * X,)),
    "gelu": (nn.functional.gelu, (3 * X,)),
    "gelu_tanh": (lambda x: nn.functional.gelu(x, approximate="tanh"), (X,)),
    "gelu_gradient": (gradient(nn.functional.gelu), (3 * X,)),
    "silu": (nn.functional.silu, (X,)),
    "silu_gradient": (gradient(nn.functional.silu), (X,)),
    "softmax": (lambda x: x.softmax(dim=1), (5 * X,)),
    "softmax_gradient": (gradient(lambda x: (5 * x).softmax(dim=-1)), (X,)),
    "norm": (NORM, (X,)),
    "norm_gradient": (gradient(lambda x: NORM(x) * Y), (X,)),
    "root_mean_square": (lambda x: x * (x.pow(2).mean(-1, keepdim=True) + 1e-6).rsqrt(), (X,)),
    "logarithms": (lambda x: (x.abs() + 0.1).log10() + (1 + x * x).log() + (x.abs() + 1) ** -0.5, (X,)),
    "limits": (lambda x: x.clamp(-0.3, 0.5) + x.relu() + x.clamp_min(-0.1), (X,)),
    "limits_gradient": (gradient(lambda x: x.clamp(-0.3, 0.5) + x.relu()), (X,)),
    "choice": (lambda m, x: torch.where(m, x, -1.0) + m * x, (MASK, X)),
    "logic": (lambda m, x: ((x > 0) & ~m).any(dim=-1) | (x < -1).any(dim=-1), (MASK, X)),
    "pieces": (lambda x: torch.cat([x[:, 1:, ::2], 2 * x[:, :3, 3:]], dim=-1).transpose(0, 1), (X,)),
    "pieces_gradient": (gradient(lambda x: torch.cat([x[:, 1:], 2 * x[:, :3]], dim=-1)), (X,)),
    "parts": (lambda x: x.split([2, 4], dim=-1)[1].amax(dim=1) - x.select(1, 2)[:, 2:], (X,)),
    "padded": (lambda x: nn.functional.pad(x, (1, 2, 0, 3)), (X,)),
    "repeated": (lambda x: x[:, None].expand(-1, 2, -1, -1).sum(dim=(1, 3)), (X,)),
    "product": (lambda z, x: z * z.conj() * x + 2j * z - x, (Z, X)),
    "matrices": (lambda z, w: z @ w, (Z, W)),
    "matrices_gradient": (gradient(lambda z: z @ W), (Z,)),
    "size": (lambda z: z.abs() + z.abs().square(), (Z,)),
    "size_gradient": (gradient(lambda z: z.abs() + z.real), (Z,)),
    "complex_pieces": (lambda z: torch.cat([z[:, :2], torch.where(MASK, z, 0)], dim=1), (Z,)),
    "transform": (lambda z: torch.fft.fft2(z, dim=(0, 2), norm="ortho") + torch.fft.ifft(z, dim=1), (Z,)),
}


@functools.cache
def traced(name: str) -> Traced:
    function, arguments = FUNCTIONS[name]
    names = [f"x{index}" for index in range(len(arguments))]

    def named(state: State) -> State:
        return {"y": function(*(state[each] for each in names))}

    return trace(named, dict(zip(names, arguments, strict=True)))


def sent(value: torch.Tensor) -> np.ndarray:
    return (torch.view_as_real(value) if value.is_complex() else value).numpy()


def check(name: str, got: np.ndarray) -> None:
    function, arguments = FUNCTIONS[name]
    wanted = sent(function(*arguments).detach().resolve_conj())
    assert got.dtype == wanted.dtype and got.shape == wanted.shape
    np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=3e-6)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_onnx(name: str) -> None:
    pytest.importorskip("onnx")
    onnxruntime = pytest.importorskip("onnxruntime")
    data = onnx_bytes(name, traced(name))
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])
    inputs = {each: sent(value) for each, value in traced(name).inputs.items()}
    check(name, session.run(["y"], inputs)[0])


def test_litert() -> None:
    """All in one file, since converting takes seconds."""
    pytest.importorskip("tensorflow")
    interpreter = pytest.importorskip("ai_edge_litert.interpreter")
    opened = interpreter.Interpreter(
        model_content=litert_bytes({name: traced(name) for name in FUNCTIONS}), num_threads=1
    )
    for name in FUNCTIONS:
        inputs = {each: sent(value) for each, value in traced(name).inputs.items()}
        check(name, opened.get_signature_runner(name)(**inputs)["y"])


def test_what_has_no_rule_is_named() -> None:
    pytest.importorskip("onnx")
    cumulated = trace(lambda state: {"y": state["x"].cumsum(0)}, {"x": X})
    with pytest.raises(SpecError, match=r"aten\.cumsum"):
        onnx_bytes("f", cumulated)
    cubed = trace(lambda state: {"y": state["x"] ** 2.5}, {"x": X})
    with pytest.raises(SpecError, match=r"power 2\.5"):
        onnx_bytes("f", cubed)


def test_inputs_that_do_not_count_are_dropped() -> None:
    found = trace(lambda state: {"y": 2 * state["a"], "c": torch.ones(2)}, {"a": X, "b": Y})
    assert list(found.inputs) == ["a"] and list(found.outputs) == ["y", "c"]


@pytest.mark.parametrize("size", [1, 2, 7, 48])
def test_transform_matrix_is_the_transform(size: int) -> None:
    rows = np.random.default_rng(size).standard_normal((3, size)) + 0j
    np.testing.assert_allclose(
        rows @ transform_matrix(size, forward=True, norm=1), np.fft.fft(rows, norm="ortho"), atol=1e-6 * size
    )
    np.testing.assert_allclose(
        rows @ transform_matrix(size, forward=False, norm=2), np.fft.ifft(rows), atol=1e-6 * size
    )


def test_the_ratio_for_erf_is_as_good_as_single_precision() -> None:
    from airlam.export.litert_file import _ERF_EVEN, _ERF_ODD, _polynomial

    x = np.linspace(-6, 6, 4001).astype(np.float32)
    clipped = np.clip(x, -4, 4)
    ratio = clipped * _polynomial(_ERF_ODD, clipped**2) / _polynomial(_ERF_EVEN, clipped**2)
    np.testing.assert_allclose(ratio, scipy.special.erf(x), atol=4e-7)
