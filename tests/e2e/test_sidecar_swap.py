"""A reference moves while a sidecar is asked over every protocol: no failed call, no mixed answer, flat memory.

Real server, real sidecar process, the clients that people use. The models add a constant to their input, so that an
answer tells by its value which version gave it.
"""

from __future__ import annotations

from pathlib import Path

import anyio
import onnxruntime
import pytest

import modelbox
from tests.faults.registry import fault
from tests.onnx_models import add_constant, perceptron
from tests.server import ServerProcess
from tests.sidecar import SidecarProcess
from tests.sidecar_traffic import Array, Traffic, added

SWAPS = 20
MANY_SWAPS = 200
SETTLED = MANY_SWAPS // 5
FLAT_BYTES = 10 << 20

pytestmark = pytest.mark.timeout(400)


@pytest.fixture(scope="module")
def anyio_backend() -> str:
    return "asyncio"


async def publish(client: modelbox.Client, path: str, models: list[bytes], directory: Path) -> None:
    """Versions 1, 2, …; ``prod`` is the first one."""
    for model in models:
        (directory / "model.onnx").write_bytes(model)
        await client.publish(path, directory / "model.onnx")
    await client.promote(f"{path}@prod", 1)


@fault(57)
@pytest.mark.slow
async def test_no_call_fails_or_mixes_over_any_protocol(shared_server: ServerProcess, tmp_path: Path) -> None:
    constants = {1: 10.0, 2: 20.0, 3: 30.0}
    async with modelbox.Client(shared_server.url, cache_dir=tmp_path / "promoting") as client:
        await publish(client, "swap/model", [add_constant(constant) for constant in constants.values()], tmp_path)
        with SidecarProcess(tmp_path, shared_server.url, "swap/model@prod") as sidecar:
            with anyio.fail_after(300):
                traffic = Traffic(sidecar, "swap/model", "prod", added(constants))
                async with traffic:
                    await traffic.answered(version=1)
                    for swap in range(1, SWAPS + 1):
                        version = 1 + swap % 3
                        await client.promote("swap/model@prod", version, reason=f"swap {swap}")
                        await traffic.answered(version=version)
            assert traffic.problems == []
            assert not traffic.failed
            assert all(min(traffic.calls[name][version] for version in constants) > 0 for name in traffic.protocols)
            assert "Traceback" not in sidecar.output


@pytest.mark.slow
async def test_memory_stays_flat_over_200_swaps(shared_server: ServerProcess, tmp_path: Path) -> None:
    models = [perceptron(256, 8, seed=seed) for seed in (1, 2)]  # 2 MB of weights each
    sessions = {number: onnxruntime.InferenceSession(model) for number, model in enumerate(models, 1)}

    def expect(version: int, x: Array) -> Array:
        y: Array = sessions[version].run(None, {"x": x})[0]
        return y

    async with modelbox.Client(shared_server.url, cache_dir=tmp_path / "promoting") as client:
        await publish(client, "flat/model", models, tmp_path)
        with SidecarProcess(tmp_path, shared_server.url, "flat/model@prod", grpc=False) as sidecar:
            with anyio.fail_after(300):
                traffic = Traffic(
                    sidecar,
                    "flat/model",
                    "prod",
                    expect,
                    protocols=("socket", "socket small", "http json", "http binary"),
                    columns=256,
                    pause_s=0.003,
                    tolerance=1e-4,
                )
                sizes = []
                async with traffic:
                    for swap in range(1, MANY_SWAPS + 1):
                        version = 1 + swap % 2
                        await client.promote("flat/model@prod", version)
                        await traffic.answered(version=version)
                        sizes.append(sidecar.rss_bytes())
                # A single look may find two versions, or large answers on their way.
                grown = min(sizes[-10:]) - max(sizes[SETTLED - 10 : SETTLED])
            assert traffic.problems == []
            assert not traffic.failed
            assert grown < FLAT_BYTES, f"{grown / 2**20:.1f} MiB from swap {SETTLED} to {MANY_SWAPS}"
            assert "Traceback" not in sidecar.output
