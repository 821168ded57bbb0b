"""Module graphs: cycles are refused, ranks and batches scale loads, gradients flow where they must."""

import pytest

from airlam.errors import SpecError
from airlam.split.graph import Edge, LoraLoad, Module, ModuleGraph

LORA = LoraLoad(forward_flops=4, backward_flops=8, parameter_bytes=16, optimiser_bytes=32, activation_bytes=2)


def module(name: str, *, trains: bool = False, lora: LoraLoad | None = None) -> Module:
    return Module(
        name=name,
        forward_flops=100,
        backward_flops=200,
        parameter_bytes=1000,
        trainable_bytes=40 if trains else 0,
        optimiser_bytes=80 if trains else 0,
        activation_bytes=60,
        working_bytes=70,
        output_bytes=10,
        lora=lora,
    )


def edge(source: str, target: str, *, num_elements: int = 6) -> Edge:
    return Edge(source=source, target=target, num_elements=num_elements, num_rows=2, fixed_bytes=3)


def test_a_cycle_is_one_clear_line() -> None:
    with pytest.raises(
        SpecError, match=r"cycle: .*(a -> b -> c -> a|b -> c -> a -> b|c -> a -> b -> c|a -> c)"
    ):
        ModuleGraph(
            modules=(module("a"), module("b"), module("c")),
            edges=(edge("a", "b"), edge("b", "c"), edge("c", "a")),
        )


@pytest.mark.parametrize(
    ("modules", "edges", "message"),
    [
        (("a", "a"), (), "'a' stands twice"),
        (("a", "b"), (("a", "x"),), "no module 'x'"),
        (("a", "b"), (("a", "b"), ("a", "b")), "two edges join"),
    ],
)
def test_what_does_not_fit_is_named(
    modules: tuple[str, ...], edges: tuple[tuple[str, str], ...], message: str
) -> None:
    with pytest.raises(SpecError, match=message):
        ModuleGraph(modules=tuple(map(module, modules)), edges=tuple(edge(*pair) for pair in edges))


def test_loads_must_make_sense() -> None:
    with pytest.raises(SpecError, match="trainable_bytes is 2; expected 0 to parameter_bytes 1"):
        Module(name="a", forward_flops=1, parameter_bytes=1, trainable_bytes=2)
    with pytest.raises(SpecError, match="forward_flops must not be negative"):
        Module(name="a", forward_flops=-1)


def test_modules_run_after_those_they_take_from() -> None:
    graph = ModuleGraph(
        modules=tuple(map(module, "dcba")),
        edges=(edge("a", "b"), edge("a", "c"), edge("b", "d"), edge("c", "d")),
    )
    place = {name: index for index, name in enumerate(graph.order)}
    assert all(place[e.source] < place[e.target] for e in graph.edges)
    assert not graph.is_chain
    assert graph.restricted_to("abd").is_chain


def test_payloads_by_precision() -> None:
    sent = Edge(source="a", target="b", num_elements=12, num_rows=3, fixed_bytes=5)
    assert (sent.forward_bytes(), sent.backward_bytes()) == (12 * 4 + 5, 12 * 4)
    assert (sent.forward_bytes("bf16"), sent.backward_bytes("bf16")) == (12 * 2 + 5, 12 * 2)
    assert (sent.forward_bytes("int8"), sent.backward_bytes("int8")) == (12 + 3 * 4 + 5, 12 + 3 * 4)
    assert Edge(source="a", target="b", num_elements=0, fixed_bytes=5).forward_bytes("int8") == 5


def test_payloads_of_berts_size() -> None:
    """32 samples of 128 tokens at width 768: 100.7 Mbit of embeddings, 0.79 Mbit once pooled, as fp32."""
    embeddings = Edge(source="a", target="b", num_elements=32 * 128 * 768)
    pooled = Edge(source="a", target="b", num_elements=32 * 768)
    assert 8e-6 * embeddings.forward_bytes() == pytest.approx(100.7, abs=0.05)
    assert 8e-6 * pooled.backward_bytes() == pytest.approx(0.79, abs=0.005)


def test_ranks_add_in_proportion() -> None:
    graph = ModuleGraph(modules=(module("a"), module("b", lora=LORA)), edges=(edge("a", "b"),))
    loaded = graph.at_ranks({"b": 3}).by_name["b"]
    assert loaded.forward_flops == 100 + 3 * 4
    assert loaded.backward_flops == 200 + 3 * 8
    assert (loaded.parameter_bytes, loaded.trainable_bytes, loaded.optimiser_bytes) == (1048, 48, 96)
    assert loaded.activation_bytes == 66
    assert loaded.training_state_bytes == 1048 + 48 + 96
    assert graph.at_ranks({"b": 3}).by_name["a"] == module("a")
    with pytest.raises(SpecError, match="no LoRA rank for b"):
        graph.at_ranks({})


def test_batches_scale_all_but_weights() -> None:
    graph = ModuleGraph(modules=(module("a"), module("b", lora=LORA)), edges=(edge("a", "b"),), batch_size=2)
    larger = graph.for_batch(6)
    assert larger.batch_size == 6
    assert larger.by_name["a"].forward_flops == 300
    assert larger.by_name["a"].parameter_bytes == 1000
    assert larger.by_name["b"].lora is not None
    assert larger.by_name["b"].lora.forward_flops == 12
    assert larger.by_name["b"].lora.parameter_bytes == 16
    assert larger.edges[0].forward_bytes("int8") == 3 * graph.edges[0].forward_bytes("int8")
    assert larger.for_batch(2) == graph


@pytest.mark.parametrize(("trained", "expected"), [("a", {"ab", "bc"}), ("b", {"bc"}), ("c", set())])
def test_gradients_go_back_to_what_trains(trained: str, expected: set[str]) -> None:
    graph = ModuleGraph(
        modules=tuple(module(name, trains=name == trained) for name in "abc"),
        edges=(edge("a", "b"), edge("b", "c"), edge("a", "c", num_elements=0)),
    )
    assert {a + b for a, b in graph.gradient_edges} == expected


def test_lora_trains_too() -> None:
    graph = ModuleGraph(modules=(module("a", lora=LORA), module("b")), edges=(edge("a", "b"),))
    assert graph.gradient_edges == {("a", "b")}
