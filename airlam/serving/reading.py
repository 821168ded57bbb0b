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


LAMS = Query(
    name="lam",
    about="A LAM's name; several of LAMs that take one kind of history.",
    schema={"type": "array", "items": {"type": "string"}, "minItems": 1},
    required=True,
)


async def read_body(request: Request, max_bytes: Callable[[str], int], timeout_s: float) -> tuple[bytes, str]:
    """A request's body and media type, in time and of a size that can be wanted.

    max_bytes: what the largest body of a media type has.
    """
    if request.headers.get("content-encoding", "identity") != "identity":
        raise BodyError(415, "bodies are taken as they are; drop Content-Encoding")
    media_type = media_type_of(request.headers.get("content-type"))
    most = max_bytes(media_type)
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared) > most:
        raise BodyError(413, f"the body has {declared[:20]} bytes; expected at most {most}")
    try:
        async with asyncio.timeout(timeout_s):
            body = await _read(request, most)
    except TimeoutError:
        raise BodyError(408, f"the body did not come within {timeout_s:g} s") from None
    except ClientDisconnect:
        raise BodyError(400, "the connection ended within the body") from None
    return body, media_type


async def _read(request: Request, most: int) -> bytes:
    """The body; BodyError as soon as it is longer than ``most`` bytes."""
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise BodyError(413, f"the body has more than {most} bytes, the most that can be wanted here")
        if part:  # one part alone is then not copied
            parts.append(part)
    return b"".join(parts)


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
    given = request.query_params.get(DEADLINE.name)
    if given is None:
        return most_s
    try:
        milliseconds = float(given)
    except ValueError:
        milliseconds = math.nan
    if not 0 < milliseconds < math.inf:
        raise BodyError(422, f"deadline_ms is {given[:40]!r}; expected a positive number")
    return min(milliseconds / 1e3, most_s)


def slot_number(request: Request) -> int | None:
    """The slot's number; None where the user does not count."""
    given = request.query_params.get(SLOT.name)
    if given is None:
        return None
    if not (given.isascii() and given.isdecimal() and len(given) < 20 and int(given) < _MOST_SLOTS):
        raise BodyError(422, f"slot is {given[:40]!r}; expected a whole number from 0, below 2^53")
    return int(given)


def lam_names(request: Request) -> list[str]:
    """The LAMs that are asked, each once."""
    names = request.query_params.getlist(LAMS.name)
    if not names or len(set(names)) < len(names):
        raise BodyError(422, f"the query names {str(names)[:80]}; expected lam=NAME once for each LAM")
    return names


def wanted_media(request: Request, own: str) -> str:
    """In which media type the sender wants the answer: what it accepts, or else that of its request."""
    accepted = request.headers.get("accept", "")
    return next((kind for kind in (BINARY, JSON) if kind in accepted), own)
