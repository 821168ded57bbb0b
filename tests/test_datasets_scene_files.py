"""What belongs to a scene of one's own: its files, found without loading it."""

from pathlib import Path

import pytest

from airlam.datasets.scene_files import own_scene, scene_digest

SCENE = """<scene version="2.1.0"><default name="mesh" value="meshes/c.ply"/>
<shape type="ply"><string name="filename" value="meshes/a.ply"/></shape>
<shape type="ply"><string name="filename" value="$mesh"/></shape>
<include filename="more.xml"/></scene>
"""
MORE = """<scene version="2.1.0"><texture type="bitmap" id="brick">
<string name="filename" value="brick.png"/></texture></scene>
"""
FILES = ("city.xml", "more.xml", "meshes/a.ply", "meshes/c.ply", "brick.png")


@pytest.fixture
def city(tmp_path: Path) -> Path:
    (tmp_path / "meshes").mkdir()
    for name in FILES:
        (tmp_path / name).write_text({"city.xml": SCENE, "more.xml": MORE}.get(name, name))
    return tmp_path / "city.xml"


def test_sionna_s_scenes_have_no_files_of_one_s_own() -> None:
    assert own_scene("simple_street_canyon") is None and scene_digest("munich") == ""
    assert own_scene("a/city.xml") == Path("a/city.xml") and own_scene("city.xml") == Path("city.xml")


@pytest.mark.parametrize("name", FILES)
def test_every_file_that_a_scene_names_counts(name: str, city: Path) -> None:
    before = scene_digest(str(city))
    assert len(before) == 64 and before == scene_digest(str(city))
    file = city.parent / name
    file.write_text(file.read_text() + " ")
    assert scene_digest(str(city)) != before
    file.write_text(file.read_text()[:-1])
    assert scene_digest(str(city)) == before


def test_files_that_it_does_not_name_do_not_count(city: Path) -> None:
    before = scene_digest(str(city))
    (city.parent / "meshes" / "b.ply").write_text("other")
    assert scene_digest(str(city)) == before


def test_names_count_from_the_working_folder_and_the_scene_s(
    city: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = scene_digest(str(city))
    monkeypatch.chdir(city.parent)
    assert scene_digest("city.xml") == before


def test_what_is_missing_or_no_xml_is_left_to_the_loader(city: Path) -> None:
    before = scene_digest(str(city))
    (city.parent / "brick.png").unlink()
    assert scene_digest(str(city)) not in (before, "")
    city.write_text("hello")
    assert len(scene_digest(str(city))) == 64
    assert scene_digest(str(city.parent / "absent.xml")) == ""
