"""What lies in spools, and delivering what was left there: for the command line and for programs.

Refuses to touch a spool whose owner lives: the lock tells.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.to_thread

from modelbox.config import ClientConfig
from modelbox.errors import ModelBoxError
from modelbox.spool.push import Delivery, Destination, Refusal
from modelbox.spool.reader import Spool, SpoolAbout, adopt, find_spools

__all__ = ("PushedSpool", "SpoolStatus", "push_spools", "spool_status")

_CLOSE_S = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SpoolStatus:
    """A spool, and what is in it.

    Attributes:
        owned: Whether its program lives (or somebody delivers it now).
        records: How many log calls are not delivered.
        size_bytes: What they take, copies of files included.
        damaged: Whether a part cannot be read.
        open_runs: Ids of runs that its program began and did not end.
    """

    about: SpoolAbout
    owned: bool
    records: int
    size_bytes: int
    damaged: bool
    open_runs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class PushedSpool:
    """What became of a spool.

    Attributes:
        delivered: How many records the server took.
        refused: Those among them that it refused for good, or that are kept aside for another push (`Refusal.kept`).
        error: Why the rest could not be delivered; None if nothing is left.
    """

    about: SpoolAbout
    delivered: int
    refused: tuple[Refusal, ...]
    error: ModelBoxError | None


def spool_status(directory: Path) -> list[SpoolStatus]:
    """The spools below a directory, oldest first; blocks, and reads all of them."""
    found = []
    for about in find_spools(directory):
        with adopt(about.directory) as adopted:
            spool = adopted or Spool(about.directory)
            records, size_bytes, damaged = spool.pending()
            found.append(
                SpoolStatus(
                    about=about,
                    owned=adopted is None,
                    records=records,
                    size_bytes=size_bytes,
                    # The last record of a program that lives may be on its way.
                    damaged=damaged and adopted is not None,
                    open_runs=tuple(spool.open_runs()),
                )
            )
    return found


async def push_spools(
    config: ClientConfig,
    directory: Path,
    *,
    any_url: bool = False,
    on_progress: Callable[[int], None] | None = None,
    connect: Callable[[ClientConfig], Destination] | None = None,
) -> tuple[PushedSpool, ...]:
    """Delivers the spools below a directory whose programs are gone; on an engine's loop.

    Args:
        config: Names the server.
        directory: Where spools lie.
        any_url: Also those for a server of another address.
        on_progress: Called with the number of records of each batch.
        connect: Makes the destination for one spool; None: over the network.
    """
    pushed: list[PushedSpool] = []
    for about in await anyio.to_thread.run_sync(find_spools, directory):
        if about.url != config.url and not any_url:
            continue
        with adopt(about.directory) as spool:
            if spool is None:
                continue
            settings = replace(config, actor=about.actor)
            if connect is not None:
                pushed.append(await _push(about, spool, connect(settings), on_progress))
                continue
            from modelbox.spool.remote import Remote

            remote = Remote(settings)
            try:
                pushed.append(await _push(about, spool, remote, on_progress))
            finally:
                with anyio.move_on_after(_CLOSE_S, shield=True):
                    await remote.aclose()
    return tuple(pushed)


async def _push(
    about: SpoolAbout, spool: Spool, to: Destination, on_progress: Callable[[int], None] | None
) -> PushedSpool:
    refused: list[Refusal] = []
    delivered = 0

    def advanced(count: int) -> None:
        nonlocal delivered
        delivered += count
        if on_progress is not None:
            on_progress(count)

    error: ModelBoxError | None = None
    try:
        delivery = Delivery(spool, to, refused=refused.append, advanced=advanced)
        await delivery.records()
        await delivery.end_open_runs()
        await delivery.uploads()
        await anyio.to_thread.run_sync(spool.remove)
    except ModelBoxError as exc:
        error = exc
    return PushedSpool(about=about, delivered=delivered, refused=tuple(refused), error=error)
