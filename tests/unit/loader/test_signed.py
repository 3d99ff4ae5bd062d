"""The loader under a policy of signatures: what is kept and opened, what goes on serving, what comes in later."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import anyio
import pytest

from modelbox.errors import SignatureRefused
from modelbox.loader.cache import Cache
from modelbox.loader.loader import Loader
from modelbox.loader.report import Identity
from modelbox.loader.settings import LoadOptions
from modelbox.objects import InstanceState, ModelVersion
from modelbox.refs import ModelRef
from modelbox.signing import SignaturePolicy, Trust, TrustedFile, parse_modes
from tests.faults.registry import fault
from tests.feed_source import FeedSource
from tests.loading import SETTINGS, Log, answer, recorded
from tests.onnx_models import add_constant
from tests.signing import Keys, make_keys, signed

REF = ModelRef.parse("ns/model@prod")


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Keys:
    return make_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def source() -> FeedSource:
    source = FeedSource()
    for number in (1, 2, 3):
        source.add({"model.onnx": add_constant(float(number))}, version=number)
    return source


def sign(source: FeedSource, number: int, keys: Keys) -> ModelVersion:
    """Puts a signature on a version, and says so."""
    version = signed(source.versions[f"ns/model@{number}"], keys.signing)
    source.edit(version, **version.metadata)
    return source.versions[f"ns/model@{number}"]


@asynccontextmanager
async def loading(
    source: FeedSource, directory: Path, trust: Trust, *, modes: str = "require"
) -> AsyncIterator[tuple[Loader, Log]]:
    cache = Cache(directory)
    await anyio.to_thread.run_sync(cache.open)
    log = Log()
    loader = Loader(
        source,
        cache,
        server_key="memory",
        identity=Identity(instance_id="i-1", host="here", pid=1),
        settings=SETTINGS,
        observe=log,
        policy=SignaturePolicy(parse_modes(modes), trust),
    )
    async with loader:
        yield loader, log


def kept(directory: Path) -> list[str]:
    """Every file that a version left behind."""
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if path.is_file() and _of(path))


def _of(path: Path) -> bool:
    return any(part in ("blobs", "manifests", "trees", "refs", "leases") for part in path.parts)


async def test_a_signed_version_serves_and_of_an_unsigned_one_nothing_is_kept(
    source: FeedSource, tmp_path: Path, keys: Keys
) -> None:
    source.move("prod", source.versions["ns/model@1"])
    async with loading(source, tmp_path, keys.trust()) as (loader, _):
        with pytest.raises(SignatureRefused, match="NOT_SIGNED") as caught:
            await loader.load(REF, LoadOptions())
        assert caught.value.fields["reason"] == "NOT_SIGNED"
        assert caught.value.fields["stage"] == "verify"
        assert kept(tmp_path) == []
        assert source.opens == []
        source.move("prod", sign(source, 2, keys))
        assert await answer(await loader.load(REF, LoadOptions())) == 3.0
        assert kept(tmp_path) != []


async def test_an_unsigned_version_waits_for_its_signature_while_the_old_one_serves(
    source: FeedSource, tmp_path: Path, keys: Keys
) -> None:
    source.move("prod", sign(source, 1, keys))
    async with loading(source, tmp_path, keys.trust()) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.move("prod", source.versions["ns/model@2"])
        failed = await log.failed(2, count=2)
        assert (failed.code, failed.stage, failed.quarantined) == ("load.trust", "verify", False)
        assert failed.reason.startswith("NOT_SIGNED: ns/model@2")
        assert await answer(reloader) == 2.0
        with anyio.fail_after(60):
            while not any(r.state is InstanceState.FAILED and "NOT_SIGNED" in r.reason for r in source.reports):
                await anyio.sleep(0.005)
        sign(source, 2, keys)
        await log.served(2)
        assert await answer(reloader) == 3.0


async def test_a_key_that_is_trusted_later_needs_no_restart(source: FeedSource, tmp_path: Path, keys: Keys) -> None:
    trusted = tmp_path / "trusted.pub"
    trusted.write_bytes(make_keys(tmp_path, "old").public.read_bytes())
    source.move("prod", sign(source, 1, keys))
    trust = Trust(keys=[TrustedFile(path=trusted), TrustedFile(path=keys.public, pattern="elsewhere")])
    async with loading(source, tmp_path / "cache", trust) as (loader, log):
        with pytest.raises(SignatureRefused, match="NOT_TRUSTED"):
            await loader.load(REF, LoadOptions())
        trusted.write_bytes(keys.public.read_bytes())
        await loader.load(REF, LoadOptions())
        await log.served(1)


@fault(15)
async def test_the_valid_signature_of_another_version_or_model_does_not_count(
    source: FeedSource, tmp_path: Path, keys: Keys
) -> None:
    source.move("prod", sign(source, 1, keys))
    async with loading(source, tmp_path, keys.trust()) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        two = source.versions["ns/model@2"]
        other = signed(replace(two, model="other"), keys.signing)
        source.edit(replace(two, bundle=other.bundle))
        source.move("prod", source.versions["ns/model@2"])
        assert (await log.failed(2)).reason.startswith("SUBJECT_MISMATCH")
        three = source.versions["ns/model@3"]
        source.edit(replace(three, bundle=source.versions["ns/model@1"].bundle))
        source.move("prod", source.versions["ns/model@3"])
        assert (await log.failed(3)).reason.startswith("SUBJECT_MISMATCH")
        assert await answer(reloader) == 2.0


@fault(11)
async def test_a_server_of_another_history_is_followed_by_signature_only(
    source: FeedSource, tmp_path: Path, keys: Keys
) -> None:
    source.move("prod", sign(source, 1, keys))
    async with loading(source, tmp_path, keys.trust()) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        source.server_id, source.epoch = "server-2", "epoch-2"
        source.move("prod", source.versions["ns/model@2"])
        source.disconnect()
        assert "NOT_SIGNED" in (await log.failed(2)).reason
        assert await answer(reloader) == 2.0
        source.move("prod", sign(source, 3, keys))
        await log.served(3)
        assert await answer(reloader) == 4.0


async def test_a_start_without_the_server_needs_the_signature_as_well(
    source: FeedSource, tmp_path: Path, keys: Keys
) -> None:
    source.move("prod", sign(source, 1, keys))
    async with loading(source, tmp_path, keys.trust()) as (loader, _):
        await recorded(await loader.load(REF, LoadOptions()), lambda state: bool(state.version.bundle))
    source.faults.down = True
    async with loading(source, tmp_path, keys.trust()) as (loader, _):
        assert await answer(await loader.load(REF, LoadOptions())) == 2.0
    async with loading(source, tmp_path, keys.trust("elsewhere")) as (loader, _):
        with pytest.raises(SignatureRefused, match="NOT_TRUSTED"):
            await loader.load(REF, LoadOptions())


async def test_a_server_that_takes_a_signature_away_takes_nothing_from_service(
    source: FeedSource, tmp_path: Path, keys: Keys
) -> None:
    source.move("prod", sign(source, 1, keys))
    async with loading(source, tmp_path, keys.trust()) as (loader, _):
        reloader = await loader.load(REF, LoadOptions())
        await recorded(reloader, lambda state: bool(state.version.bundle))
        source.edit(replace(source.versions["ns/model@1"], bundle=""), stripped=True)
        await recorded(reloader, lambda state: state.version.metadata == {"stripped": True})
        await recorded(reloader, lambda state: bool(state.version.bundle))
    async with loading(source, tmp_path, keys.trust()) as (loader, log):
        assert await answer(await loader.load(REF, LoadOptions())) == 2.0
        assert "NOT_SIGNED" in (await log.failed(1)).reason
    source.faults.down = True
    async with loading(source, tmp_path, keys.trust()) as (loader, _):
        assert await answer(await loader.load(REF, LoadOptions())) == 2.0


async def test_a_start_serves_the_last_good_version_rather_than_an_unsigned_one(
    source: FeedSource, tmp_path: Path, keys: Keys
) -> None:
    source.move("prod", sign(source, 1, keys))
    async with loading(source, tmp_path, keys.trust()) as (loader, _):
        await recorded(await loader.load(REF, LoadOptions()), lambda state: True)
    source.move("prod", source.versions["ns/model@2"])
    async with loading(source, tmp_path, keys.trust()) as (loader, log):
        reloader = await loader.load(REF, LoadOptions())
        assert await answer(reloader) == 2.0
        sign(source, 2, keys)
        await log.served(2)


async def test_what_is_not_required_is_warned_of(
    source: FeedSource, tmp_path: Path, keys: Keys, caplog: pytest.LogCaptureFixture
) -> None:
    source.move("prod", source.versions["ns/model@1"])
    with caplog.at_level(logging.WARNING):
        async with loading(source, tmp_path, keys.trust(), modes="other=require,*=warn") as (loader, _):
            assert await answer(await loader.load(REF, LoadOptions())) == 2.0
    assert "NOT_SIGNED" in caplog.text
