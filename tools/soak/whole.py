"""One run over all of ModelBox: random operations and faults from one seed, a model's life after the other."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from pathlib import Path

from tests.faults.world import Story, Violation, World
from tests.servers.mariadb import MariadbServer
from tools.soak.outcome import Outcome, telling

__all__ = ("soak_whole",)

_STEPS = 60
"""Operations and faults in one model's life."""


def soak_whole(
    directory: Path, *, seconds: float, seed: int, say: Callable[[str], None], mariadb: bool = False
) -> Outcome:
    """Runs for that long, and a little longer until everybody serves the same.

    Args:
        directory: For everything that is written; empty, and with a short path.
        seconds: How long faults are made.
        seed: Of operations and faults.
        say: Tells of progress.
        mariadb: On a MariaDB, and not on a PostgreSQL.
    """
    rng, outcome = random.Random(seed), Outcome()
    with World(directory, MariadbServer() if mariadb else None) as world:
        # How long the start takes is the machine's, and no part of it.
        began = time.monotonic()
        start = world.memory()
        most = dict(start)
        told = began
        while time.monotonic() - began < seconds and not outcome.violations:
            story = world.story()
            _live(world, story, rng, outcome, until=began + seconds)
            for handle, answers in story.answers().items():
                outcome.answered[handle] += answers
            now = world.memory()
            most = {name: max(size, most.get(name, 0)) for name, size in now.items()}
            if time.monotonic() - told > 60:
                told = time.monotonic()
                say(f"{told - began:.0f} s: {outcome.operations.total()} operations, {outcome.faults.total()} faults")
        end = world.memory()
        outcome.memory = {
            name: (start[name], end.get(name, 0), max(most.get(name, 0), end.get(name, 0))) for name in start
        }
        processes = {"sidecar": world.sidecar, **{f"server {n}": one for n, one in enumerate(world.replicas)}}
        outcome.violations += [
            f"{name} printed a traceback" for name, one in processes.items() if "Traceback" in one.output
        ]
        if outcome.violations:
            outcome.output = {name: telling(one.output) for name, one in processes.items()}
    outcome.seconds = time.monotonic() - began
    return outcome


def _live(world: World, story: Story, rng: random.Random, outcome: Outcome, *, until: float) -> None:
    operations: dict[str, tuple[int, Callable[[], None]]] = {
        "publish": (3, story.publish),
        "publish a broken version": (1, lambda: story.publish(broken=True)),
        "promote": (10, lambda: story.promote(rng.choice)),
        "promote with an old place": (2, lambda: story.promote_with_an_old_place(rng.choice)),
        "roll back": (2, lambda: story.roll_back(rng.choice)),
        "delete": (2, lambda: story.delete(rng.choice)),
        "read": (6, lambda: story.read(rng.choice)),
    }
    faults: dict[str, tuple[int, Callable[[], None]]] = {
        "server killed": (2, lambda: world.kill_server(rng.randrange(2))),
        "server stopped (SIGSTOP)": (1, lambda: world.pause_server(rng.randrange(2))),
        "database killed": (1, world.kill_database),
        "sidecar killed": (1, world.kill_sidecar),
        "everything started again": (4, world.heal),
    }
    steps = [(name, weight, act, outcome.operations) for name, (weight, act) in operations.items()]
    steps += [(name, weight, act, outcome.faults) for name, (weight, act) in faults.items()]
    weights = [weight for _, weight, _, _ in steps]
    try:
        story.begin()
        for _ in range(_STEPS):
            if time.monotonic() > until:
                break
            [(name, _, act, counter)] = rng.choices(steps, weights=weights)
            act()
            counter[name] += 1
            story.check()
            time.sleep(rng.uniform(0, 0.2))
        story.end()
    except Exception as exc:
        outcome.violations.append(str(exc) if isinstance(exc, Violation) else f"{story.path}: {exc!r}"[:1000])
        world.heal()
