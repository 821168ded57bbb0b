"""Specs from TOML and back.

An unknown key is an error that names the key and its nearest known one. Values are checked once, when a spec
is made; deeper code trusts them.
"""

import dataclasses
import difflib
import math
import reprlib
import tomllib
import types
import typing
from pathlib import Path
from typing import Any, Literal, TypeVar

import tomli_w

from airlam.errors import SpecError

Spec = TypeVar("Spec")


def read_spec(kind: type[Spec], path: Path) -> Spec:
    """Reads a spec of the given kind from a TOML file; a bad file or value raises SpecError."""
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise SpecError(f"cannot read {path}: {error}") from error
    return parse_spec(kind, text, str(path))


def parse_spec(kind: type[Spec], text: str, where: str = "the spec") -> Spec:
    """The spec that a TOML text describes; ``where`` names the text in errors."""
    try:
        values = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # not TOML, or numbers and nesting beyond all reason
        raise SpecError(f"{where} is not TOML: {error}") from error
    return spec_from_dict(kind, values, where)


def spec_from_dict(kind: type[Spec], values: dict[str, Any], where: str = "the spec") -> Spec:
    """A spec from nested tables; unknown, missing and mistyped keys raise SpecError naming them."""
    hints = typing.get_type_hints(kind)
    fields = {f.name: f for f in dataclasses.fields(kind) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(key, fields, n=1)
            hint = f"; did you mean {near[0]!r}?" if near else f"; known keys: {', '.join(fields)}"
            raise SpecError(f"{where}: unknown key {key!r}{hint}")
    required = [
        name
        for name, f in fields.items()
        if f.default is dataclasses.MISSING and f.default_factory is dataclasses.MISSING
    ]
    missing = [name for name in required if name not in values]
    if missing:
        raise SpecError(f"{where}: missing key {missing[0]!r}")
    converted = {key: _convert(hints[key], value, f"{where}: {key}") for key, value in values.items()}
    try:
        return kind(**converted)
    except SpecError as error:
        raise SpecError(f"{where}: {error}") from None


def _convert(hint: Any, value: Any, where: str) -> Any:
    """``value`` as the annotated type: nested specs, tuples, literals, numbers."""
    if isinstance(value, int) and not -(2**63) <= value < 2**63:
        raise SpecError(f"{where} is a number of {value.bit_length()} bits; expected at most 63")
    shown = reprlib.repr(value)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        inner = [a for a in arguments if a is not type(None)]
        return _convert(inner[0], value, where)
    if origin is Literal:
        if value not in arguments:
            near = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1)
            hint_text = f"; did you mean {near[0]!r}?" if near else ""
            raise SpecError(f"{where} is {shown}; expected one of {list(arguments)}{hint_text}")
        return value
    if origin is tuple:
        if not isinstance(value, list | tuple):
            raise SpecError(f"{where} is {shown}; expected a list")
        if arguments[-1] is Ellipsis:
            return tuple(_convert(arguments[0], item, where) for item in value)
        if len(value) != len(arguments):
            raise SpecError(f"{where} has {len(value)} values; expected {len(arguments)}")
        return tuple(_convert(a, item, where) for a, item in zip(arguments, value, strict=True))
    if dataclasses.is_dataclass(hint):
        if not isinstance(value, dict):
            raise SpecError(f"{where} is {shown}; expected a table")
        return spec_from_dict(typing.cast(type[Any], hint), value, where)
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if not isinstance(value, hint) or (hint is int and isinstance(value, bool)):
        raise SpecError(f"{where} is {shown}; expected {hint.__name__}")
    if hint is float and not math.isfinite(value):
        raise SpecError(f"{where} is {shown}; expected a finite number")
    return value


def spec_to_dict(spec: Any) -> dict[str, Any]:
    """Nested tables of a spec, without the keys that are None (TOML has no null) and empty tables."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            plain_items = {key: plain(item) for key, item in value.items() if item is not None}
            return {key: item for key, item in plain_items.items() if item != {}}
        return [plain(item) for item in value] if isinstance(value, list | tuple) else value

    return typing.cast(dict[str, Any], plain(dataclasses.asdict(spec)))


def spec_to_toml(spec: Any) -> str:
    """The spec as TOML; ``parse_spec`` gives it back equal."""
    return tomli_w.dumps(spec_to_dict(spec))


def require_finite(spec: Any) -> None:
    """Raises SpecError naming the first number of a spec, alone or in a tuple, that is NaN or infinite.

    TOML is checked as it is read; this holds specs made in Python to the same.
    """
    for key in dataclasses.fields(spec):
        value = getattr(spec, key.name)
        for number in value if isinstance(value, tuple) else (value,):
            if isinstance(number, float) and not math.isfinite(number):
                raise SpecError(f"{key.name} is {value}; expected a finite number")


def require(condition: bool, message: str) -> None:
    """Raises SpecError with ``message`` unless the condition holds."""
    if not condition:
        raise SpecError(message)
