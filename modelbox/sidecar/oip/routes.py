"""What each path of the Open Inference Protocol over HTTP does.

An adapter that knows requests and answers as plain values, not how they travel (`http`): finds the route, reads the
body, calls the service, writes the answer. Every failure is an answer ``{"error": text}`` with a status from `status`;
what nobody expected is logged once, here, and leaves without details.

A model's name in a path is ``model`` or ``namespace/model``. What follows is read from the right, so that a model of
the name ``config`` or ``ready`` is addressed with its slash escaped: ``/v2/models/acme%2Fready``.
"""

from __future__ import annotations

import gzip
import ipaddress
import json
import logging
import math
import secrets
import time
import zlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from time import perf_counter_ns
from typing import Any, TypeVar
from urllib.parse import unquote, urlsplit

import anyio
import anyio.to_thread

from modelbox._serving.process import package_version
from modelbox.errors import AuthError, InputError, LimitError, ModelBoxError, NotFoundError
from modelbox.redaction import redact
from modelbox.refs import shown
from modelbox.sidecar.oip.binary import parse_header_length, read_body, read_raw
from modelbox.sidecar.oip.datatypes import datatype_of
from modelbox.sidecar.oip.extensions import SERVER_NAME, extensions
from modelbox.sidecar.oip.json_body import InferBody, encode_answer, parse_json
from modelbox.sidecar.oip.large_json import LARGE_BYTES
from modelbox.sidecar.oip.shared_memory import SharedMemory
from modelbox.sidecar.oip.status import retry_after_s, statuses_of
from modelbox.sidecar.oip.tensors import LARGE_TEXTS_BYTES, Buffer
from modelbox.sidecar.service import InferenceService, InferRequest
from modelbox.signature import TensorSpec

__all__ = ("HttpAnswer", "HttpRequest", "Routes", "failure")

_LOG = logging.getLogger(__name__)

_JSON = "application/json"
_BINARY = "application/octet-stream"
_MAX_JSON_BYTES = 16 << 20
"""A document's objects take some twenty times its text in memory; large tensors belong into binary data."""
_MAX_ROUTES = 4096
_MAX_HOSTS = 64
_INLINE_BYTES = 16 << 10
"""Up to here (de)compressing is quicker than the way to a thread."""
_UNASKED_BYTES = 64 << 10
"""JSON from here on is compressed for clients that take any of several codings."""
_CHUNK = 1 << 20
_INLINE_ELEMENTS = 4096
"""Of tensors in JSON: up to here writing them takes no longer than the way to a thread."""
_PAUSE_S = 50e-6
"""Long enough for another thread to take the interpreter over; without it, that takes 5 ms."""

Result = TypeVar("Result")


@dataclass(slots=True)
class HttpRequest:
    """A request, all of it.

    Attributes:
        method: In capitals.
        path: As it was sent, without the query.
        headers: By lower-case name.
        body: As it was sent: perhaps compressed.
    """

    method: str
    path: str
    headers: Mapping[str, str]
    body: Buffer = b""


@dataclass(slots=True)
class HttpAnswer:
    """An answer.

    Attributes:
        status: Of HTTP.
        parts: The body, in pieces.
        content_type: Of the body.
        headers: Further ones.
    """

    status: int = 200
    parts: list[Buffer] = field(default_factory=list)
    content_type: str = _JSON
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def size(self) -> int:
        """Bytes of the body."""
        return sum([len(part) for part in self.parts])


Handler = Callable[[HttpRequest], Awaitable[HttpAnswer]]


@dataclass(frozen=True, slots=True)
class _Route:
    """Handlers by method."""

    handlers: Mapping[str, Handler]

    @property
    def allow(self) -> str:
        return ", ".join(sorted(self.handlers))


def failure(error: ModelBoxError, *, status: int | None = None) -> HttpAnswer:
    """The answer that ``error`` becomes."""
    answer = _json({"error": redact(error.message)}, status=status or statuses_of(error).http)
    if answer.status == 503:
        pause_s = retry_after_s(error)
        answer.headers["Retry-After"] = str(math.ceil(pause_s) if pause_s else 1)
    return answer


class Routes:
    """All paths of the protocol.

    Args:
        service: What runs the models.
        memory: Registered shared memory, shared with gRPC; None where that is not allowed.
        repository: Whether clients may load and unload models.
        max_body_bytes: Of a request after decompression.
        loopback: The server listens on loopback only, so a host name that is not this machine's own comes from a page
            of another site that made its name point here (DNS rebinding).
    """

    def __init__(
        self,
        service: InferenceService,
        *,
        memory: SharedMemory | None,
        repository: bool = True,
        max_body_bytes: int = 64 << 20,
        loopback: bool = False,
    ) -> None:
        self._service = service
        self._memory = memory
        self._repository = repository
        self._max_body_bytes = max_body_bytes
        # Paths that were asked for, so that they are taken apart once.
        self._known: dict[str, _Route] = {}
        self._one_aside = anyio.CapacityLimiter(1)
        self._loopback = loopback
        self._hosts: set[str] = set()

    async def answer(self, request: HttpRequest) -> HttpAnswer:
        """Answers ``request``, in any case."""
        try:
            headers = request.headers
            if headers.get("host", "") not in self._hosts or "origin" in headers:
                self._check_origin(headers)
            route = self._known.get(request.path)
            if route is None:
                route = self._find(request.path)
            handler = route.handlers.get(request.method)
            if handler is None:
                return HttpAnswer(
                    405,
                    _json({"error": f"{request.method} is not for this path: use {route.allow}"}).parts,
                    headers={"Allow": route.allow},
                )
            if "content-encoding" in headers:
                request.body = await self._decompressed(request.body, headers["content-encoding"])
            answer = await handler(request)
            accepts = headers.get("accept-encoding")
            return answer if accepts is None else await _compressed(answer, accepts)
        except ModelBoxError as exc:
            return failure(exc)
        except Exception:
            request_id = secrets.token_hex(6)
            _LOG.exception("%s %s failed unexpectedly (request %s)", request.method, shown(request.path), request_id)
            return failure(ModelBoxError(f"the sidecar failed unexpectedly: see its log, request {request_id}"))

    # -- finding

    def _check_origin(self, headers: Mapping[str, str]) -> None:
        host = headers.get("host", "")
        if self._loopback and not _is_local(host):
            raise AuthError(f"the host {shown(host)} is not this sidecar's: use its address, such as 127.0.0.1")
        origin = headers.get("origin")
        if origin is not None and _host_of(origin) != host:
            raise AuthError(f"requests from pages of {shown(origin)} are not taken")
        if len(self._hosts) < _MAX_HOSTS:
            self._hosts.add(host)

    def _find(self, path: str) -> _Route:
        parts = [unquote(part) for part in path.removesuffix("/").split("/")[1:]]
        route = self._route(parts) if parts and parts[0] == "v2" else None
        if route is None:
            raise NotFoundError(
                f"there is nothing at {shown(path)}: models are at /v2/models/NAME and /v2/models/NAME/versions/VERSION"
            )
        if len(self._known) >= _MAX_ROUTES:
            self._known.clear()
        self._known[path] = route
        return route

    def _route(self, parts: list[str]) -> _Route | None:
        match parts[1:]:
            case []:
                return _get(self._server_metadata)
            case ["health", "live"]:
                return _get(self._live)
            case ["health", "ready"]:
                return _get(self._ready)
            case ["models"]:
                return _get(self._list_models)
            case ["models", "stats"]:
                return _get(lambda _: self._statistics("", ""))
            case ["models", *rest]:
                return self._model_route(rest)
            case ["repository", "index"]:
                return _Route({"POST": self._index})
            case ["repository", "models", *name, ("load" | "unload") as what] if 1 <= len(name) <= 2:
                change = self._load if what == "load" else self._unload
                return _Route({"POST": lambda request: change("/".join(name), request)})
            case ["systemsharedmemory", *rest] if self._memory is not None:
                return _memory_route(self._memory, rest)
            case ["systemsharedmemory" | "cudasharedmemory" as kind, *_]:
                return _absent(kind, "shared memory of this kind is not part of this server")
            case ["trace" | "logging" as what, *_]:
                return _absent(
                    what, f"the {what} extension is not part of this server: its settings say what is logged"
                )
        return None

    def _model_route(self, rest: list[str]) -> _Route | None:
        action = ""
        if len(rest) > 1 and rest[-1] in ("infer", "ready", "config", "stats"):
            *rest, action = rest
        version = ""
        if len(rest) > 2 and rest[-2] == "versions":
            version = rest[-1]
            rest = rest[:-2]
        if not 1 <= len(rest) <= 2:
            return None
        name = "/".join(rest)
        match action:
            case "infer":
                return _Route({"POST": lambda request: self._infer(name, version, request)})
            case "ready":
                return _get(lambda _: self._model_ready(name, version))
            case "config":
                return _get(lambda _: self._config(name, version))
            case "stats":
                return _get(lambda _: self._statistics(name, version))
        return _get(lambda _: self._metadata(name, version))

    # -- running

    async def _infer(self, name: str, version: str, request: HttpRequest) -> HttpAnswer:
        began_ns = perf_counter_ns()
        body, memory = request.body, self._memory
        length = parse_header_length(request.headers.get("inference-header-content-length"), len(body))
        if length == 0:
            parsed = read_raw(body, self._service.metadata(name, version).signature)
        else:
            json_bytes = len(body) if length is None else length
            _check_json_size(json_bytes)
            if json_bytes < LARGE_BYTES and not _brings_many_texts(body, json_bytes):
                parsed = read_body(body, length, memory)
            else:
                parsed = await self._aside(partial(read_body, body, length, memory, _pause))
        response = await self._service.infer(
            InferRequest(
                model=name,
                version=version,
                id=parsed.id,
                inputs=parsed.inputs,
                outputs=[wish.name for wish in parsed.outputs],
                timeout_s=parsed.timeout_s,
                priority=parsed.priority,
                parameters=parsed.parameters,
                began_ns=began_ns,
            )
        )
        encoding_ns = perf_counter_ns()
        encode = partial(
            encode_answer,
            model=response.model,
            version=str(response.version),
            id=parsed.id,
            outputs=response.outputs,
            wishes=parsed.outputs,
            binary_output=parsed.binary_output,
            memory=memory,
        )
        if _json_elements(response.outputs, parsed) <= _INLINE_ELEMENTS:
            encoded = encode()
        else:
            encoded = await self._aside(partial(encode, pause=_pause))
        self._service.record_encoding(response, perf_counter_ns() - encoding_ns)
        if encoded.header_length is None:
            return HttpAnswer(200, [encoded.head])
        return HttpAnswer(
            200,
            [encoded.head, *encoded.buffers],
            _BINARY,
            {"Inference-Header-Content-Length": str(encoded.header_length)},
        )

    # -- asking

    async def _server_metadata(self, _: HttpRequest) -> HttpAnswer:
        names = extensions(shared_memory=self._memory is not None, repository=self._repository)
        return _json({"name": SERVER_NAME, "version": package_version(), "extensions": list(names)})

    async def _live(self, _: HttpRequest) -> HttpAnswer:
        live = self._service.live()
        return _json({"live": live}, status=200 if live else 503)

    async def _ready(self, _: HttpRequest) -> HttpAnswer:
        ready = self._service.ready()
        return _json({"ready": ready}, status=200 if ready else 503)

    async def _model_ready(self, name: str, version: str) -> HttpAnswer:
        self._service.find(name, version)
        ready = self._service.model_ready(name, version)
        return _json({"name": name, "ready": ready}, status=200 if ready else 503)

    async def _list_models(self, _: HttpRequest) -> HttpAnswer:
        return _json({"models": list(dict.fromkeys(entry.name for entry in self._service.index(ready_only=True)))})

    async def _metadata(self, name: str, version: str) -> HttpAnswer:
        found = self._service.metadata(name, version)
        return _json(
            {
                "name": found.name,
                "versions": list(found.versions),
                "platform": found.platform,
                "inputs": _described(found.signature.inputs),
                "outputs": _described(found.signature.outputs),
            }
        )

    async def _config(self, name: str, version: str) -> HttpAnswer:
        return _json(self._service.config(name, version))

    async def _statistics(self, name: str, version: str) -> HttpAnswer:
        return _json({"model_stats": self._service.statistics(name, version)})

    # -- the repository

    async def _index(self, request: HttpRequest) -> HttpAnswer:
        ready_only = _document(request).get("ready", False)
        if not isinstance(ready_only, bool):
            raise InputError(f'"ready" is {shown(ready_only)}: expected true or false')
        return _json(
            [
                {"name": entry.name, "version": entry.version, "state": str(entry.state), "reason": entry.reason}
                for entry in self._service.index(ready_only=ready_only)
            ]
        )

    async def _load(self, name: str, request: HttpRequest) -> HttpAnswer:
        self._check_repository()
        parameters = _document(request).get("parameters") or {}
        if not isinstance(parameters, dict):
            raise InputError('"parameters" is no object')
        if refused := [key for key in parameters if key == "config" or key.startswith("file:")]:
            raise InputError(
                f"the load parameter {shown(refused[0])} is not taken: publish the model to the registry instead"
            )
        await self._service.load(name)
        return _json({"name": name, "load": True})

    async def _unload(self, name: str, request: HttpRequest) -> HttpAnswer:
        self._check_repository()
        _document(request)
        await self._service.unload(name)
        return _json({"name": name, "unload": True})

    def _check_repository(self) -> None:
        if not self._repository:
            raise AuthError("loading and unloading by clients is switched off here: repository_control = false")

    # -- bodies

    async def _aside(self, work: Callable[[], Result]) -> Result:
        """Does what takes long in a thread; one at a time, as all of it is the interpreter's."""
        return await anyio.to_thread.run_sync(work, limiter=self._one_aside)

    async def _decompressed(self, body: Buffer, coding: str) -> Buffer:
        if len(body) <= _INLINE_BYTES:
            return _decompress(body, coding, self._max_body_bytes)
        return await anyio.to_thread.run_sync(_decompress, body, coding, self._max_body_bytes)


def _brings_many_texts(body: Buffer, json_bytes: int) -> bool:
    """Whether tensors of BYTES may be behind the JSON, or in shared memory, that take long to read."""
    head = bytes(body[:json_bytes])
    # A backslash: the name of the type may be written in many ways.
    if b"BYTES" not in head and b"\\" not in head:
        return False
    return len(body) - json_bytes > LARGE_TEXTS_BYTES or b"shared_memory" in head or b"\\" in head


def _host_of(origin: str) -> str | None:
    try:
        return urlsplit(origin).netloc
    except ValueError:
        return None


def _is_local(host: str) -> bool:
    try:
        name = urlsplit(f"//{host}").hostname or ""
        return name == "localhost" or ipaddress.ip_address(name).is_loopback
    except ValueError:
        return False


def _get(handler: Handler) -> _Route:
    return _Route({"GET": handler})


def _absent(_: str, text: str) -> _Route:
    async def refuse(_: HttpRequest) -> HttpAnswer:
        return _json({"error": text}, status=501)

    return _Route({"GET": refuse, "POST": refuse})


def _memory_route(memory: SharedMemory, rest: list[str]) -> _Route | None:
    match rest:
        case ["status"]:
            name = ""
        case ["unregister"]:
            name = ""
        case ["region", name, "status" | "register" | "unregister"]:
            pass
        case _:
            return None

    async def status(_: HttpRequest) -> HttpAnswer:
        return _json(
            [
                {"name": found.name, "key": found.key, "offset": found.offset, "byte_size": found.byte_size}
                for found in memory.status(name)
            ]
        )

    async def register(request: HttpRequest) -> HttpAnswer:
        wanted = _document(request)
        key, offset, size = wanted.get("key"), wanted.get("offset", 0), wanted.get("byte_size")
        if not isinstance(key, str) or type(offset) is not int or type(size) is not int:
            raise InputError("registering shared memory takes key (text), offset and byte_size (numbers of bytes)")
        memory.register(name, key, offset, size)
        return HttpAnswer()

    async def unregister(_: HttpRequest) -> HttpAnswer:
        memory.unregister(name)
        return HttpAnswer()

    if rest[-1] == "status":
        return _get(status)
    return _Route({"POST": register if rest[-1] == "register" else unregister})


def _described(specs: tuple[TensorSpec, ...]) -> list[dict[str, object]]:
    """What the protocol can carry of a signature; sequences and maps it cannot."""
    return [
        {
            "name": spec.name,
            "datatype": datatype.name,
            "shape": [dim if isinstance(dim, int) else -1 for dim in spec.shape],
        }
        for spec in specs
        if (datatype := datatype_of(spec.dtype)) is not None
    ]


def _json(document: object, *, status: int = 200) -> HttpAnswer:
    return HttpAnswer(status, [json.dumps(document, separators=(",", ":")).encode()])


def _document(request: HttpRequest) -> dict[str, object]:
    """A control request's JSON object; an empty body counts as an empty object."""
    if not len(request.body):
        return {}
    _check_json_size(len(request.body))
    document = parse_json(request.body, "the request")
    if not isinstance(document, dict):
        raise InputError("the request is no JSON object")
    return document


def _pause() -> None:
    time.sleep(_PAUSE_S)


def _json_elements(outputs: Mapping[str, Any], parsed: InferBody) -> int:
    """How many elements go into an answer's JSON."""
    if parsed.outputs:
        names = [wish.name for wish in parsed.outputs if wish.region is None and not _binary(wish.binary, parsed)]
    else:
        names = [] if parsed.binary_output else list(outputs)
    return sum([getattr(outputs[name], "size", 0) for name in names])


def _binary(wish: bool | None, parsed: InferBody) -> bool:
    return parsed.binary_output if wish is None else wish


def _check_json_size(size: int) -> None:
    if size > _MAX_JSON_BYTES:
        raise LimitError(
            f"the request has {size} bytes of JSON, more than {_MAX_JSON_BYTES}: send large tensors as binary data"
        )


# -- compression


def _decompress(body: Buffer, coding: str, limit: int) -> bytes:
    """One compressed body; at most ``limit`` bytes are made of it."""
    coding = coding.strip().lower()
    if coding in ("", "identity"):
        return bytes(body)
    if coding not in ("gzip", "x-gzip", "deflate"):
        raise InputError(f"the Content-Encoding {shown(coding)} is not known here: use gzip, deflate or none")
    data = bytes(body)
    if coding == "deflate":
        # Meant as zlib's format, but sent without its frame by some.
        framed = len(data) >= 2 and data[0] & 15 == 8 and int.from_bytes(data[:2]) % 31 == 0
        inflate = zlib.decompressobj(zlib.MAX_WBITS if framed else -zlib.MAX_WBITS)
    else:
        inflate = zlib.decompressobj(16 + zlib.MAX_WBITS)
    pieces: list[bytes] = []
    size = 0
    try:
        while not inflate.eof:
            piece = inflate.decompress(data, _CHUNK)
            data = inflate.unconsumed_tail
            if not piece and not data:
                break
            size += len(piece)
            if size > limit:
                raise LimitError(f"the body has more than {limit} bytes when decompressed")
            pieces.append(piece)
    except zlib.error as exc:
        raise InputError(f"the body is no {coding}: {exc}") from exc
    if not inflate.eof or inflate.unused_data:
        raise InputError(f"the body is no {coding}: it ends in the middle, or goes on after its end")
    return b"".join(pieces)


async def _compressed(answer: HttpAnswer, accepts: str) -> HttpAnswer:
    """The answer as the client wants it.

    Libraries offer a list of codings unasked, and on one machine compressing costs more than it saves. So one coding
    alone is taken as a wish, of a list only large JSON makes use.
    """
    if not answer.parts or answer.status != 200:
        return answer
    wanted = [coding for item in accepts.split(",") if (coding := _coding(item))]
    coding = next((coding for coding in wanted if coding in ("gzip", "deflate")), "")
    if not coding or (len(wanted) > 1 and (answer.content_type != _JSON or answer.size < _UNASKED_BYTES)):
        return answer
    body = b"".join(answer.parts)
    deflate = _gzip if coding == "gzip" else _deflate
    if len(body) <= _INLINE_BYTES:
        answer.parts = [deflate(body)]
    else:
        answer.parts = [await anyio.to_thread.run_sync(deflate, body)]
    answer.headers |= {"Content-Encoding": coding, "Vary": "Accept-Encoding"}
    return answer


def _coding(item: str) -> str:
    """The coding that an item of Accept-Encoding takes; empty for one that it refuses."""
    coding, _, parameters = item.partition(";")
    weight = parameters.strip().lower().removeprefix("q=")
    try:
        refused = bool(parameters) and float(weight) <= 0
    except ValueError:
        refused = True
    return "" if refused else coding.strip().lower()


def _gzip(body: bytes) -> bytes:
    return gzip.compress(body, 1, mtime=0)


def _deflate(body: bytes) -> bytes:
    return zlib.compress(body, 1)
