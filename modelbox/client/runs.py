"""Runs that are recorded through the spool, as methods of the client."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path

from modelbox.client.arguments import path_of
from modelbox.client.connection import ClientConnection
from modelbox.objects import JsonValue
from modelbox.run import LiveRun
from modelbox.spool.delivery import PushedSpool, push_spools

__all__ = ("RunCalls",)


class RunCalls(ClientConnection):
    """The part of `Client` for programs that train."""

    def start_run(
        self,
        experiment: str,
        *,
        name: str = "",
        params: Mapping[str, JsonValue] | None = None,
        tags: Mapping[str, str] | None = None,
        metadata: Mapping[str, JsonValue] | None = None,
        parent: LiveRun | str | None = None,
        resume: str | None = None,
        system_metrics: bool | float = False,
        capture: bool = True,
        strict: bool = False,
        flush_timeout_s: float = 10.0,
    ) -> LiveRun:
        """A run to log to, which begins with ``with`` or ``async with`` (or `LiveRun.start`).

        Needs no server: what is logged goes to a spool on disk (``spool_dir``) and is delivered in the background, in
        order, when the server can be reached; by a later program or ``modelbox spool push`` if this one dies before.
        The spool belongs to the process: it goes on when this client is closed.

        Args:
            experiment: ``namespace/name``, made where it is new, or an experiment's id.
            name: How people know the run; empty: made of its id.
            params: Hyperparameters, JSON by key.
            tags: Text by key.
            metadata: JSON by key.
            parent: A run, or the id of one, that this one is a part of.
            resume: Id of a run to go on with instead of a new one. Steps that are left out go on from the last ones on
                the server, which is waited for at most 2 s; if it does not answer, they count from 0 again.
            system_metrics: Whether to log the machine's CPU, memory, disk, network and GPUs, every 10 s or as many
                seconds as given.
            capture: Whether to record git commit, uncommitted changes, packages, command line and machine.
            strict: Whether a value that cannot be kept raises `InvalidError` or `LimitError`. Otherwise it is left out,
                counted and said once for each key, since a training run is not to be stopped by logging.
            flush_timeout_s: How long the end of the block waits for delivery, 0 not at all; at most 2 s where the
                server was away before.

        Raises:
            InvalidError: The experiment, the name, or an id cannot be right.
        """
        self._check_open()
        return LiveRun(
            experiment,
            self.config,
            name=name,
            params=params,
            tags=tags,
            metadata=metadata,
            parent=parent,
            resume=resume,
            system_metrics=system_metrics,
            capture=capture,
            strict=strict,
            flush_timeout_s=flush_timeout_s,
        )

    async def push_spools(
        self,
        directory: str | os.PathLike[str] | None = None,
        *,
        any_url: bool = False,
        on_progress: Callable[[int], None] | None = None,
    ) -> tuple[PushedSpool, ...]:
        """Delivers what programs that are gone have left in their spools; those of programs that live are passed over.

        Args:
            directory: Where spools lie; None: the setting ``spool_dir``.
            any_url: Also those that are for a server of another address.
            on_progress: Called with the number of records of each delivered batch, on the engine's thread.

        Returns:
            One entry for each spool that was delivered, in part or whole, or failed.

        Cancellation: what was delivered stays so; the rest is kept.
        """
        parent = self.config.spool_dir if directory is None else path_of(directory)
        config = self.config
        return await self._call(lambda _: push_spools(config, Path(parent), any_url=any_url, on_progress=on_progress))
