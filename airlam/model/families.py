"""Where a Hugging Face model keeps its layers, norms and projections, found without knowing its family."""

from collections.abc import Callable

from torch import nn

from airlam.errors import SpecError


def find_layers(model: nn.Module) -> tuple[str, nn.ModuleList]:
    """Path and list of a model's layers: the one ModuleList as long as ``config.num_hidden_layers``."""
    depth = model.config.num_hidden_layers  # type: ignore[union-attr]
    found = [
        (path, module)
        for path, module in model.named_modules()
        if isinstance(module, nn.ModuleList) and len(module) == depth
    ]
    if not found:
        raise SpecError(f"{type(model).__name__} has no list of {depth} layers; choose another backbone")
    return min(found, key=lambda item: item[0].count("."))  # an expert list lies deeper


def final_norm(model: nn.Module, layers_path: str, run: Callable[[], object]) -> str | None:
    """Path of what follows the last layer (a norm), or None; ``run`` makes one pass of the model."""
    parent_path, _, list_name = layers_path.rpartition(".")
    parent = model.get_submodule(parent_path)
    last_layer = model.get_submodule(layers_path)[-1]  # type: ignore[index]
    called: list[str] = []
    names = [name for name, child in parent.named_children() if name != list_name]
    handles = [last_layer.register_forward_hook(lambda *_: called.clear())]
    for name in names:
        handles.append(parent.get_submodule(name).register_forward_hook(_note(called, name)))
    try:
        run()
    finally:
        for handle in handles:
            handle.remove()
    return f"{parent_path}.{called[0]}".lstrip(".") if called else None


def _note(called: list[str], name: str) -> Callable[..., None]:
    def hook(*_: object) -> None:
        called.append(name)

    return hook


def projection_names(model: nn.Module) -> tuple[str, ...]:
    """Leaf names of the linear maps inside the layers (attention and feed-forward): where LoRA goes."""
    _, layers = find_layers(model)
    return tuple(sorted({path.rpartition(".")[2] for path, m in layers.named_modules() if is_linear(m)}))


def norm_names(model: nn.Module) -> tuple[str, ...]:
    """Leaf names of the norms, by class name: nn.LayerNorm and each family's RMSNorm."""
    return tuple(
        sorted({path.rpartition(".")[2] for path, m in model.named_modules() if "Norm" in type(m).__name__})
    )


def is_linear(module: nn.Module) -> bool:
    """A linear map, GPT-2's transposed Conv1D included."""
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def set_child(model: nn.Module, path: str, child: nn.Module | None) -> None:
    """Puts ``child`` at ``path``."""
    parent_path, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent_path), name, child)
