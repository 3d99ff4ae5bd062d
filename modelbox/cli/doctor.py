"""``modelbox doctor``: says what works from here, and what to do about the rest."""

from __future__ import annotations

import importlib.util
import platform
import shutil
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from typing import TYPE_CHECKING

import typer

from modelbox.cli.exits import Exit
from modelbox.cli.output import OutputFormat, OutputOption, UrlOption, local_time, print_json, print_table, size_text
from modelbox.errors import ModelBoxError

if TYPE_CHECKING:
    from modelbox.config import ClientConfig

__all__ = ("doctor",)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Check:
    """One thing that was looked at; ``state`` is ok, warning or failed."""

    check: str
    state: str
    detail: str


def doctor(url: UrlOption = None, output: OutputOption = OutputFormat.TABLE) -> None:
    """Check settings, server, cache and installed extras; exits with 1 if something does not work.

    Example: modelbox doctor --url http://models.example:8080
    """
    from modelbox.config import load_client_config

    checks = [*_installation()]
    try:
        config = load_client_config(url=url)
    except ModelBoxError as exc:
        checks.append(_Check(check="settings", state="failed", detail=str(exc)))
    else:
        detail = f"server {config.url}, cache {config.cache_dir}, actor {config.actor}"
        checks.append(_Check(check="settings", state="ok", detail=detail))
        checks += _server(config)
        checks.append(_cache(config))
        checks.append(_signatures(config))
    if output is OutputFormat.JSON:
        print_json(checks)
    else:
        print_table(("CHECK", "STATE", "DETAIL"), [(c.check, c.state, c.detail) for c in checks], empty="")
    if any(check.state == "failed" for check in checks):
        raise typer.Exit(Exit.FAILED)


def _installation() -> Iterator[_Check]:
    yield _Check(
        check="modelbox",
        state="ok",
        detail=f"{_release('modelbox')}, Python {platform.python_version()}, {platform.system()}",
    )
    onnx = _release("onnxruntime")
    if not onnx:
        yield _Check(
            check="onnxruntime",
            state="warning",
            detail="not installed: models cannot be loaded in this environment; pip install 'modelbox[onnx]'",
        )
    elif tuple(int(part) for part in onnx.split(".")[:2] if part.isdigit()) < (1, 24):
        yield _Check(
            check="onnxruntime",
            state="failed",
            detail=f"{onnx} reads files outside of a model's directory: install 1.24.1 or newer",
        )
    else:
        yield _Check(check="onnxruntime", state="ok", detail=onnx)
    if importlib.util.find_spec("uvloop") is None:
        yield _Check(check="uvloop", state="warning", detail="not installed: transfers are slower without it")
    else:
        yield _Check(check="uvloop", state="ok", detail=_release("uvloop"))


def _server(config: ClientConfig) -> list[_Check]:
    import anyio

    from modelbox.engine import Engine

    async def run() -> list[_Check]:
        engine = Engine()
        try:
            return await engine.call(_contact, config)
        finally:
            await engine.aclose()

    return anyio.run(run)


async def _contact(config: ClientConfig) -> list[_Check]:
    from modelbox._transport.source import RemoteSource

    source = RemoteSource(config)
    checks: list[_Check] = []

    async def http() -> str:
        info = await source.http.server_info()
        ours = _release("modelbox")
        text = f"{config.url}, release {info.version}, installation {info.server_id}"
        return text if info.version == ours else f"{text} (this client is {ours})"

    async def grpc() -> str:
        host, port = (await source.http.server_info()).grpc_target(config.url)
        await source.grpc.list_namespaces(page_size=1)
        caller = await source.access.whoami()
        if not caller.access:
            return f"{host}:{port}, without access control"
        roles = "; ".join(str(grant) for grant in caller.grants) or "no roles yet"
        until = "" if caller.expires_at is None else f", until {local_time(caller.expires_at)}"
        return f"{host}:{port}, as {caller.name}: {roles}{until}"

    try:
        for name, contact in (("server, HTTP", http), ("server, gRPC", grpc)):
            checks.append(await _tried(name, contact))
            if checks[-1].state == "failed":
                break
    finally:
        await source.aclose()
    return checks


async def _tried(name: str, contact: Callable[[], Awaitable[str]]) -> _Check:
    try:
        return _Check(check=name, state="ok", detail=await contact())
    except ModelBoxError as exc:
        return _Check(check=name, state="failed", detail=str(exc))


def _cache(config: ClientConfig) -> _Check:
    from modelbox.loader.cache import Cache

    try:
        cache = Cache(config.cache_dir, max_bytes=config.cache_max_bytes)
        cache.open()
        used = sum(entry.size_bytes for entry in cache.usage())
        free = shutil.disk_usage(config.cache_dir).free
    except ModelBoxError as exc:
        return _Check(check="cache", state="failed", detail=str(exc))
    text = f"{size_text(used)} of {size_text(config.cache_max_bytes)} used, {size_text(free)} free on the disk"
    if cache.read_only:
        return _Check(check="cache", state="warning", detail=f"{text}; read-only: nothing new can be downloaded")
    if free < 1 << 30:
        return _Check(check="cache", state="warning", detail=f"{text}; little room for models")
    return _Check(check="cache", state="ok", detail=text)


def _signatures(config: ClientConfig) -> _Check:
    policy = config.signature_policy()
    try:
        policy.open()
    except ModelBoxError as exc:
        return _Check(check="signatures", state="failed", detail=str(exc))
    if policy.trust.empty:
        return _Check(check="signatures", state="ok", detail="nobody is trusted, nothing is verified")
    detail = f"{config.signatures or 'warn'}; all trusted files can be read"
    return _Check(check="signatures", state="ok", detail=detail)


def _release(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""
