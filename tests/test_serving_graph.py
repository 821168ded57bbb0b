"""Equal modules of several tasks are one service; what cannot run is refused."""

import pytest

from airlam.errors import SpecError
from airlam.serving.service_graph import ServiceGraph, TaskModules, merge

# Wang et al., 2505.00321, Fig. 3: four and five module instances, of which the sketch's precoder and the
# projection of masked features are the same
SKETCH_TO_IMAGE = TaskModules.chain(
    {"sketch_precoder": "s", "masking_projection": "m", "image_backbone": "i", "image_decoder": "j"}
)
TEXT_AND_SKETCH_TO_VIDEO = TaskModules(
    identity_of={
        "sketch_precoder": "s",
        "masking_projection": "m",
        "text_encoder": "t",
        "video_backbone": "v",
        "video_decoder": "w",
    },
    edges=(
        ("sketch_precoder", "masking_projection"),
        ("masking_projection", "video_backbone"),
        ("text_encoder", "video_backbone"),
        ("video_backbone", "video_decoder"),
    ),
)


def test_two_services_of_nine_modules_need_seven_instances() -> None:
    graph = merge({"image": SKETCH_TO_IMAGE, "video": TEXT_AND_SKETCH_TO_VIDEO})
    assert graph.num_monolithic == 9
    assert len(graph.services) == 7
    shared = [service.name for service in graph.services if service.tasks == ("image", "video")]
    assert shared == ["sketch_precoder", "masking_projection"]
    assert graph.edges.count(("sketch_precoder", "masking_projection")) == 1
    assert ("masking_projection", "video_backbone@video") in graph.edges


def test_services_come_after_what_they_take_from() -> None:
    graph = merge({"image": SKETCH_TO_IMAGE, "video": TEXT_AND_SKETCH_TO_VIDEO})
    place = {name: index for index, name in enumerate(graph.order)}
    assert len(place) == len(graph.services)
    assert all(place[source] < place[target] for source, target in graph.edges)


def test_modules_are_shared_only_where_name_and_identity_agree() -> None:
    first = TaskModules.chain({"a": "1", "b": "2", "c": "3"})
    second = TaskModules.chain({"a": "1", "b": "other", "d": "3"})
    graph = merge({"x": first, "y": second})
    assert {service.name for service in graph.services} == {"a", "b@x", "b@y", "c@x", "d@y"}


def test_a_cycle_that_sharing_closes_is_refused() -> None:
    forth = TaskModules.chain({"a": "1", "b": "2"})
    back = TaskModules.chain({"b": "2", "a": "1"})
    with pytest.raises(SpecError, match=r"cycle: .*a -> .*b|cycle: .*b -> .*a"):
        merge({"x": forth, "y": back})


def test_a_cycle_in_one_graph_is_refused() -> None:
    graph = merge({"x": TaskModules.chain({"a": "1", "b": "2"})})
    with pytest.raises(SpecError, match="cycle"):
        ServiceGraph(services=graph.services, edges=(*graph.edges, ("b", "a")), flows=graph.flows)


def test_an_edge_to_nowhere_and_no_task_at_all_are_refused() -> None:
    with pytest.raises(SpecError, match="no module 'b'"):
        TaskModules(identity_of={"a": "1"}, edges=(("a", "b"),))
    with pytest.raises(SpecError, match="no task"):
        merge({})
