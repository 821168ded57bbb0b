"""What a request says, read with bounds: its body in size and time, its query in kind and range."""

import asyncio
import math
from collections.abc import Callable

from starlette.requests import ClientDisconnect, Request

from airlam.serving.arrays import BINARY, JSON, BodyError, media_type_of
from airlam.serving.description import Query

_DISCARD_S, _DISCARD_BYTES = 0.2, 2**22  # of a refused body that is still on its way
_MOST_SLOTS = 2**53  # whole numbers that JSON's readers keep
DEADLINE = Query(
    name="deadline_ms",
    about="Milliseconds from arrival to answer.",
    schema={"type": "number", "exclusiveMinimum": 0},
)
SLOT = Query(
    name="slot",
    about="The slot's number, where the user counts.",
    schema={"type": "integer", "minimum": 0, "exclusiveMaximum": _MOST_SLOTS},
)


PREDICT = Query(
    name="predict",
    about="Whether a prediction is wanted once the history is whole.",
    schema={"type": "boolean", "default": True},
)
DEFAULT_TOP = 3  # beams
TOP = Query(
    name="top",
    about="How many beams of each sweep; no more than there are.",
    schema={"type": "integer", "minimum": 1, "default": DEFAULT_TOP},
)
_NAMES = {"type": "array", "items": {"type": "string"}, "minItems": 1}
LAMS = Query(
    name="lam",
    about="A LAM's name; several of LAMs that take one kind of history.",
    schema=_NAMES,
    required=True,
)
SESSIONS = Query(name="session", about="The session of each user.", schema=_NAMES, required=True)
RECEIVER_NOISE = Query(
    name="receiver_noise_variance",
    about="Of the users' receivers, over a total power of 1.",
    schema={"type": "number", "exclusiveMinimum": 0},
    required=True,
)


class ReadingRoom:
    """Bytes of all bodies that are being read, so that many slow senders do not fill the memory.

    A body that is read alone has all the room it needs.
    """

    def __init__(self, max_bytes: int) -> None:
        self._max, self._held = max_bytes, 0

    def take(self, size: int, own: int) -> None:
        """Room for ``size`` bytes more of a body that has ``own``; BodyError where others have it."""
        if own < self._held and self._held + size > self._max:
            raise BodyError(429, "too many bodies are being read; try again")
        self._held += size

    def leave(self, own: int) -> None:
        """Gives back what a body has."""
        self._held -= own


async def read_body(
    request: Request, max_bytes: Callable[[str], int], timeout_s: float, room: ReadingRoom
) -> tuple[bytearray, str]:
    """A request's body and media type, in time and of a size that can be wanted.

    max_bytes: what the largest body of a media type has.
    """
    if _header(request, b"content-encoding", "identity") != "identity":
        raise BodyError(415, "bodies are taken as they are; drop Content-Encoding")
    media_type = media_type_of(_header(request, b"content-type"))
    most = max_bytes(media_type)
    declared = _header(request, b"content-length")
    if declared.isdecimal() and int(declared) > most:
        raise BodyError(413, f"the body has {declared[:20]} bytes; expected at most {most}")
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(request, most, room)
    except TimeoutError:
        raise BodyError(408, f"the body did not come within {timeout_s:g} s") from None
    except ClientDisconnect:
        raise BodyError(400, "the connection ended within the body") from None
    return body, media_type


async def _read(request: Request, most: int, room: ReadingRoom) -> bytearray:
    """The body; BodyError as soon as it is longer than ``most`` bytes."""
    parts, size = [], 0
    try:
        async for part in request.stream():
            if size + len(part) > most:
                raise BodyError(413, f"the body has more than {most} bytes, the most that can be wanted here")
            room.take(len(part), size)
            size += len(part)
            parts.append(part)
        return bytearray().join(parts)
    finally:
        room.leave(size)


async def discard(request: Request) -> bool:
    """Reads on in a refused body, so that its sender gets to read why; false where too much is to come.

    A connection that is closed with bytes unread is reset, and the answer in it may be lost.
    """
    size = 0
    try:
        async with asyncio.timeout(_DISCARD_S):
            async for part in request.stream():
                size += len(part)
                if size > _DISCARD_BYTES:
                    return False
    except (TimeoutError, ClientDisconnect):
        return False
    except RuntimeError:  # of Starlette, where the body has been read to its end
        return True
    return True


def deadline_s(request: Request, most_s: float) -> float:
    """Seconds that the request gives itself, at most ``most_s``."""
    milliseconds = _positive(request, DEADLINE)
    return most_s if milliseconds is None else min(milliseconds / 1e3, most_s)


def receiver_noise_variance(request: Request) -> float:
    """Of the users' receivers."""
    value = _positive(request, RECEIVER_NOISE)
    if value is None:
        raise BodyError(422, f"the query names no {RECEIVER_NOISE.name}; expected a positive number")
    return value


def _positive(request: Request, query: Query) -> float | None:
    """A positive number of the query; None where there is none."""
    given = request.query_params.get(query.name) if request.scope["query_string"] else None
    if given is None:
        return None
    try:
        value = float(given)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise BodyError(422, f"{query.name} is {given[:40]!r}; expected a positive number")
    return value


def wants_prediction(request: Request) -> bool:
    """Whether a slot is to be answered by a prediction."""
    given = request.query_params.get(PREDICT.name, "true")
    if given not in ("true", "false"):
        raise BodyError(422, f"predict is {given[:40]!r}; expected true or false")
    return given == "true"


def slot_number(request: Request) -> int | None:
    """The slot's number; None where the user does not count."""
    given = request.query_params.get(SLOT.name)
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) < 20 and int(given) < _MOST_SLOTS):
        raise BodyError(422, f"slot is {given[:40]!r}; expected a whole number from 0, below 2^53")
    return int(given)


def top_beams(request: Request, num_beams: int) -> int:
    """How many beams of each sweep are wanted."""
    given = request.query_params.get(TOP.name, str(DEFAULT_TOP))
    if not (given.isascii() and given.isdecimal() and int(given[:20])):
        raise BodyError(422, f"top is {given[:40]!r}; expected a whole number from 1")
    return min(int(given[:20]), num_beams)


def names_in(request: Request, query: Query) -> list[str]:
    """What the query names, LAMs or sessions, each once."""
    names = request.query_params.getlist(query.name)
    if not names or len(set(names)) < len(names):
        raise BodyError(
            422, f"the query names {str(names)[:80]}; expected {query.name}=NAME once for each {query.name}"
        )
    return names


def wanted_media(request: Request, own: str) -> str:
    """In which media type the sender wants the answer: what it accepts, or else that of its request."""
    accepted = _header(request, b"accept")
    return next((kind for kind in (BINARY, JSON) if kind in accepted), own)


def _header(request: Request, name: bytes, default: str = "") -> str:
    """A header's first value."""
    for key, value in request.scope["headers"]:
        if key == name:
            return str(value, "latin-1")
    return default
