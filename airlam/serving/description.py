"""The server's paths as one table, of which routes and the OpenAPI document (3.1) are both made.

The routes are plain Starlette: nothing of the document costs a request time.
"""

import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from airlam.serving.arrays import BINARY, JSON

Handler = Callable[[Request], Awaitable[Response]]
REFUSALS = {
    400: "Cut short, or no safetensors or JSON.",
    404: "No model or session of this name.",
    408: "The body came too slowly.",
    413: "The body is larger than can be wanted here.",
    415: "Another media type.",
    422: "Another dtype or shape, or numbers that nothing can be found from.",
    429: "The queue is full; see Retry-After.",
    503: "The server is about to end.",
    504: "The deadline passed while the request waited.",
}
_SCHEMAS = "#/components/schemas/"


@dataclass(frozen=True, slots=True, kw_only=True)
class Query:
    """A parameter behind the question mark; schema: of JSON Schema."""

    name: str
    about: str
    schema: Mapping[str, Any]
    required: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Body:
    """What a path takes: ``json`` as JSON, the same tensors by name as safetensors."""

    json: type[BaseModel]
    tensors: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """A path, its method and what answers; the handler's docstring says what it does.

    answers: status -> what it means. media: of the answer where all is well, and what is in it.
    """

    method: str
    path: str
    handler: Handler
    answers: Mapping[int, str]
    media: Mapping[str, str] = field(default_factory=lambda: {JSON: ""})
    queries: Sequence[Query] = ()
    body: Body | None = None

    @property
    def route(self) -> Route:
        """What Starlette routes by."""
        return Route(self.path, self.handler, methods=[self.method])

    def described(self, known: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """The OpenAPI operation. known: the values that some of the path's parts can take."""
        summary, _, more = (self.handler.__doc__ or "").strip().partition("\n")
        operation: dict[str, Any] = {
            "summary": summary,
            "operationId": self.handler.__name__,
            "parameters": [*self._path_parameters(known), *map(_parameter, self.queries)],
            "responses": {str(status): self._response(status) for status in self.answers},
        }
        if more.strip():
            operation["description"] = " ".join(more.split())
        if self.body is not None:
            operation["requestBody"] = {"required": True, "content": _content(self.body)}
        return operation

    def _path_parameters(self, known: Mapping[str, Sequence[str]]) -> list[dict[str, Any]]:
        parts = re.findall(r"\{(\w+)\}", self.path)
        schemas = {part: {"enum": list(known[part])} if part in known else {} for part in parts}
        return [
            {"name": part, "in": "path", "required": True, "schema": {"type": "string", **schemas[part]}}
            for part in parts
        ]

    def _response(self, status: int) -> dict[str, Any]:
        described: dict[str, Any] = {"description": self.answers[status]}
        if status == 200:
            described["content"] = {kind: _media(kind, about) for kind, about in self.media.items()}
        elif status >= 400:
            described["content"] = {JSON: {"schema": {"$ref": _SCHEMAS + "Refusal"}}}
        return described


def openapi(endpoints: Sequence[Endpoint], known: Mapping[str, Sequence[str]]) -> dict[str, Any]:
    """The document of all paths of a server. known: the values that some of the paths' parts can take."""
    paths: dict[str, dict[str, Any]] = {}
    for endpoint in endpoints:
        paths.setdefault(endpoint.path, {})[endpoint.method.lower()] = endpoint.described(known)
    bodies = {endpoint.body.json for endpoint in endpoints if endpoint.body is not None}
    ordered = sorted(bodies, key=lambda kind: kind.__name__)
    _, defined = models_json_schema(
        [(kind, "validation") for kind in ordered], ref_template=_SCHEMAS + "{model}"
    )
    refusal = {"type": "object", "properties": {"detail": {"type": "string"}}, "required": ["detail"]}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "airlam",
            "summary": "Predictions of radio channels, precoders for them, and beams.",
            "version": version("airlam"),
        },
        "paths": paths,
        "components": {"schemas": {**defined.get("$defs", {}), "Refusal": refusal}},
    }


def _parameter(query: Query) -> dict[str, Any]:
    described = {"name": query.name, "in": "query", "description": query.about, "schema": dict(query.schema)}
    return {**described, "required": query.required}


def _content(body: Body) -> dict[str, Any]:
    return {
        BINARY: _media(BINARY, body.tensors),
        JSON: {"schema": {"$ref": _SCHEMAS + body.json.__name__}},
    }


def _media(kind: str, about: str) -> dict[str, Any]:
    if kind == JSON:
        return {}
    is_binary = kind == BINARY
    described = f"safetensors: {about}" if is_binary else about
    form = {"format": "binary"} if is_binary else {}
    return {"schema": {"type": "string", **form, "description": described}}
