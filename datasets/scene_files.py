"""Files of a scene of the user's own: which they are, and a digest of what is in them."""

import hashlib
import xml.etree.ElementTree as ElementTree
from collections.abc import Iterator
from pathlib import Path


def own_scene(name: str) -> Path | None:
    """The XML file that a spec's ``scene`` names; None for a plain word, which is a scene of Sionna's."""
    return None if name.isidentifier() else Path(name)


def scene_digest(name: str) -> str:
    """SHA-256 of a scene's XML file and of all files that it names: meshes, textures, included scenes.

    Names count from the working folder and from the XML file's, where Mitsuba looks for them. Empty for a
    scene of Sionna's and for a file that is not there; a file that is named and not there counts as missing,
    since loading the scene says so.
    """
    path = own_scene(name)
    if path is None or not path.is_file():
        return ""
    digest = hashlib.sha256()
    for file in _files(path):
        digest.update(f"{file.name}\n{_file_digest(file)}\n".encode())
    return digest.hexdigest()


def _files(path: Path) -> list[Path]:
    """The XML file and what it names, each once, in the order of the text."""
    found = [path.resolve()]
    for file in found:  # grows by what included scenes name
        if file == found[0] or file.suffix.lower() == ".xml":
            found += [other for other in dict.fromkeys(_named(file, path.parent)) if other not in found]
    return found


def _named(file: Path, folder: Path) -> Iterator[Path]:
    """Files that an XML file names; none where it is not XML."""
    try:
        elements = list(ElementTree.fromstring(file.read_bytes()).iter())
    except (OSError, ElementTree.ParseError, ValueError):
        return
    defaults = {
        "$" + each.get("name", ""): each.get("value", "") for each in elements if each.tag == "default"
    }
    for each in elements:
        name = each.get("value") if each.get("name") == "filename" else each.get("filename")
        if name:
            name = defaults.get(name, name)
            here = Path.cwd() / name
            yield here if here.is_file() else folder.resolve() / name


def _file_digest(file: Path) -> str:
    try:
        with file.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError:
        return "missing"
