"""From a client's settings to those of its loader."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import pytest

from modelbox.config import load_client_config
from modelbox.engine import Engine
from modelbox.loader.probe import ProbeMode
from modelbox.loader.settings import LoaderSettings
from modelbox.loader.slower import Slower
from modelbox.loading import LoaderHost
from modelbox.refs import ModelRef
from tests.feed_source import FeedSource
from tests.onnx_models import add_constant


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {}),
        ({"probe": "off", "slower": "off"}, {"slower": Slower.OFF}),
        (
            {"probe": "unsigned", "probe_timeout_s": 5, "probe_max_bytes": "2 GiB"},
            {"probe": ProbeMode.UNSIGNED, "probe_timeout_s": 5.0, "probe_max_bytes": 2 << 30},
        ),
        ({"slower": "refuse", "slower_factor": 3}, {"slower": Slower.REFUSE, "slower_factor": 3.0}),
        ({"swap_interval_s": 30}, {"swap_interval_s": 30.0}),
    ],
    ids=lambda value: ",".join(value) or "nothing",
)
async def test_a_clients_settings_reach_its_loader(
    given: dict[str, Any], changed: dict[str, Any], tmp_path: Path
) -> None:
    env = {"HOME": str(tmp_path), "USER": "ada"}
    config = load_client_config(env=env, cache_dir=tmp_path / "cache", **given)
    source = FeedSource()
    source.move("prod", source.add({"model.onnx": add_constant(1)}))

    async def transport() -> FeedSource:
        return source

    engine = Engine()
    host = LoaderHost(engine, config=lambda: config, source=transport)
    try:
        model = await host.load(ModelRef.parse("ns/model@prod"), None, timeout=60)
        life = host._life
        assert life is not None
        assert life.loader._settings == replace(LoaderSettings(), **changed)
        await model.aclose()
        await engine.call(host.aclose)
    finally:
        await anyio.to_thread.run_sync(engine.close)
