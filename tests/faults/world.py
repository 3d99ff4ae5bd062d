"""All of ModelBox at once, under faults: two servers on one database, two loaders, a sidecar, two watchers.

`World` runs the processes and lets things happen to them. `Story` is one model's life in it: what was done to it, what
everybody saw of it, and the verdict. Both are blocking; handles answer and watchers watch in threads of their own.

What must hold, whatever happens:

* no handle ever fails, and each answer is that of the version which it names, to which the alias pointed once;
* what was acknowledged is in the history, and what is read next is that or something that was tried later;
* every watcher is told the history, whole and in order;
* once everything runs again, everybody serves what the alias points to.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Protocol, Self, TypeVar

import numpy as np

import modelbox.sync
from modelbox.errors import ClientClosed, ConflictError, InUseError, NotFoundError, ServerBusy, TransportError
from modelbox.feed import Change, ResumeToken, Resync
from modelbox.objects import AliasMove
from modelbox.sync import SyncModel
from tests.onnx_models import add_constant, unknown_operator
from tests.replicas import Replicas
from tests.servers.mariadb import MariadbServer
from tests.servers.postgres import PostgresServer
from tests.sidecar import SidecarProcess

__all__ = ("ALIASES", "Choose", "Story", "Violation", "World")

T = TypeVar("T")

ALIASES = ("prod", "staging")
_X = {"x": np.zeros((1, 4), np.float32)}
_PATIENCE_S = 180.0
_START_S = 120.0
_PAUSE_S = 0.02
_AWAY = (TransportError, ServerBusy)
"""What an operation may fail with while something is down; whether it was carried out is open then."""


class Choose(Protocol):
    """Picks one of a few: a random generator."""

    def __call__(self, options: Sequence[T], /) -> T:
        """One of ``options``."""


class Violation(AssertionError):
    """Something was seen that must not be."""


class World:
    """The processes; use as a context manager.

    Args:
        directory: For everything that is written; a short path, as a socket lies in it.
        database: What the servers share, not started yet; by default a PostgreSQL.
    """

    def __init__(self, directory: Path, database: PostgresServer | MariadbServer | None = None) -> None:
        self.directory = directory
        self.database = database or PostgresServer(fsync=True)
        self.down: set[int] = set()
        self.still: set[int] = set()
        self.database_down = False
        self._stack = ExitStack()
        self._numbers = itertools.count(1)

    def __enter__(self) -> Self:
        with ExitStack() as stack:
            stack.enter_context(self.database)
            url = self.database.new_database(migrated=True)
            self.replicas = stack.enter_context(Replicas(url, self.directory, log_level="warning"))
            with self.client("first") as client:
                _patiently(partial(_publish, client, self.directory, "whole/first", 1.0))
            self.sidecar = stack.enter_context(
                SidecarProcess(self.directory, self.replicas.url, "whole/first", log_level="info")
            )
            self._stack = stack.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.heal()
        self._stack.close()

    def client(self, name: str, *, sidecar: str = "") -> modelbox.sync.Client:
        """A client of the balancer, with a cache of its own."""
        return modelbox.sync.Client(
            self.replicas.url,
            cache_dir=str(self.directory / "caches" / name),
            # A sidecar that starts again costs waiting; a server that is down is told of soon.
            request_timeout_s=_START_S if sidecar else 3,
            sidecar=sidecar,
        )

    def story(self) -> Story:
        """Begins the life of another model."""
        return Story(self, f"whole/model-{next(self._numbers)}")

    def memory(self) -> dict[str, int]:
        """Resident bytes of each process of ours that runs."""
        processes = {"sidecar": self.sidecar, **{f"server {n}": one for n, one in enumerate(self.replicas)}}
        return {name: one.rss_bytes() for name, one in processes.items() if one.running}

    # -- faults ----------------------------------------------------------------------------------------------------

    def kill_server(self, number: int) -> None:
        """SIGKILL."""
        if number not in self.down:
            self.resume_server(number)
            self.replicas[number].kill()
            self.down.add(number)

    def start_server(self, number: int) -> None:
        """Starts it again, where it can: not while there is no database."""
        if number in self.down and not self.database_down:
            self.replicas[number].restart(timeout=_START_S)
            self.down.discard(number)

    def pause_server(self, number: int) -> None:
        """SIGSTOP: it takes connections and answers nothing."""
        if number not in self.down | self.still:
            self.replicas[number].pause()
            self.still.add(number)

    def resume_server(self, number: int) -> None:
        """SIGCONT."""
        if number in self.still:
            self.replicas[number].resume()
            self.still.discard(number)

    def kill_database(self) -> None:
        """SIGKILL of the database, and of all its processes."""
        if not self.database_down:
            self.database.kill()
            self.database_down = True

    def start_database(self) -> None:
        """Starts it again; it recovers from its log."""
        if self.database_down:
            self.database.start()
            self.database_down = False

    def kill_sidecar(self) -> None:
        """SIGKILL, and a new one over the same cache."""
        self.sidecar.kill()
        self.sidecar.restart(timeout=_START_S)

    def heal(self) -> None:
        """Everything runs again."""
        self.start_database()
        for number in range(len(self.replicas)):
            self.resume_server(number)
            self.start_server(number)


@dataclass(kw_only=True)
class Seen:
    """What one handle answered: each version, with what it added, and how often; and what failed."""

    handle: str
    alias: str
    answers: dict[tuple[int, float], int] = field(default_factory=dict)
    last: int = 0
    failures: list[str] = field(default_factory=list)


class Story:
    """One model's life.

    Args:
        world: Where.
        path: Of the model.
    """

    def __init__(self, world: World, path: str) -> None:
        self.world = world
        self.path = path
        self.operations = 0
        self._attempts = itertools.count(1)
        self._constants: dict[int, float] = {}
        self._broken: set[int] = set()
        self._gone: set[int] = set()
        self._perhaps_gone: set[int] = set()
        self.acknowledged: list[tuple[str, int, int]] = []
        self._pointed: dict[str, int] = {}
        # A call that was not answered may still be carried out at any later moment.
        self._unanswered: dict[str, set[int]] = {alias: set() for alias in ALIASES}
        self._perhaps_rolled_back: set[str] = set()
        self._no_models: set[float] = set()
        self._begun = 0
        self.seen: list[Seen] = []
        self._models: list[SyncModel] = []
        self._threads: list[threading.Thread] = []
        self.told: list[list[Change]] = []
        self.history: list[AliasMove] = []
        self._watching: list[str] = []
        self._stopping = threading.Event()
        self._stack = ExitStack()

    def begin(self) -> None:
        """Publishes two versions, loads the handles and starts to watch."""
        with ExitStack() as stack:
            name = self.path.rpartition("/")[2]
            # Its answers are looked at one by one, so it must not hide a failure by asking again for long.
            self._client = stack.enter_context(self.world.client(f"{name}-operator"))
            for _ in range(2):
                constant = float(next(self._attempts))
                version = _patiently(partial(_publish, self._client, self.world.directory, self.path, constant))
                self._note_version(version, constant)
            first = min(self._constants)
            for alias in ALIASES:
                _patiently(partial(self._point, alias, first))
            # Nothing before that is a watcher's loss.
            start = _patiently(lambda: self._client.resolve(f"{self.path}@prod")).token
            self._begun = ResumeToken.parse(start).rev
            loaders = [stack.enter_context(self.world.client(f"{name}-loader-{number}")) for number in range(2)]
            beside = stack.enter_context(self.world.client(f"{name}-beside", sidecar=self.world.sidecar.socket_url))
            threads = []
            for handle, alias, client in (
                ("loader 0", "prod", loaders[0]),
                ("loader 1", "prod", loaders[1]),
                ("loader 1, staging", "staging", loaders[1]),
                ("sidecar", "prod", beside),
            ):
                load = partial(client.load, f"{self.path}@{alias}", timeout=_START_S)
                model = stack.enter_context(_patiently(load))
                seen = Seen(handle=handle, alias=alias)
                self.seen.append(seen)
                self._models.append(model)
                threads.append(threading.Thread(target=self._answer, args=(model, seen), daemon=True))
            for number in range(2):
                client = stack.enter_context(self.world.client(f"{name}-watcher-{number}"))
                feed = stack.enter_context(client.changes(start, objects=[self.path], kinds=["alias"]))
                self.told.append([])
                threads.append(threading.Thread(target=self._watch, args=(feed, self.told[-1]), daemon=True))
            for thread in threads:
                thread.start()
            self._threads = threads[:-2]
            stack.callback(self._stop)
            # Who never met the server is told that it is away.
            _patiently(partial(self._client.promote, f"{self.path}@begin", first))
            self._wait(lambda: all(self.told), lambda: "watchers hear nothing")
            self._stack = stack.pop_all()

    def _stop(self) -> None:
        """Ends the calls."""
        self._stopping.set()
        for thread in self._threads:
            thread.join(_PATIENCE_S)
            if thread.is_alive():
                raise Violation("a call does not end")

    def _answer(self, model: SyncModel, seen: Seen) -> None:
        while not self._stopping.wait(_PAUSE_S):
            try:
                outputs = model.predict(_X)
            except Exception as exc:
                seen.failures.append(f"{exc!r}, {len(self.acknowledged)} moves after the start")
                continue
            key = (int(outputs.version.version), float(outputs["y"][0, 0]))
            seen.answers[key] = seen.answers.get(key, 0) + 1
            seen.last = key[0]

    def _watch(self, feed: modelbox.sync.SyncChangeFeed, told: list[Change]) -> None:
        while True:
            try:
                for item in feed:
                    if isinstance(item, Resync):
                        self._watching.append(f"a watcher was told that history is gone: {item}")
                    elif not told or (item.rev, item.idx) > (told[-1].rev, told[-1].idx):
                        told.append(item)
            except ClientClosed:
                pass
            except Exception as exc:
                if isinstance(exc, _AWAY) and not told:
                    continue
                self._watching.append(f"a watch ended: {exc!r}")
            return

    # -- what is done to it ----------------------------------------------------------------------------------------

    def publish(self, *, broken: bool = False) -> None:
        """Publishes a version that adds a number of its own, or that no runtime opens."""
        self.operations += 1
        constant = float(next(self._attempts))
        if broken:
            self._no_models.add(constant)
        try:
            made = _publish(self._client, self.world.directory, self.path, constant, broken=broken)
        except _AWAY:
            # Perhaps it was; the next one that answers tells.
            self._look()
            return
        self._note_version(made, constant)

    def _look(self) -> None:
        """Takes note of versions whose publication was not answered."""
        with suppress(*_AWAY, NotFoundError):
            for version in list(self._client.iter_versions(self.path)):
                self._note_version(version.version, float(version.labels["adds"]))

    def _note_version(self, version: int, constant: float) -> None:
        known = self._constants.setdefault(version, constant)
        if known != constant:
            raise Violation(f"version {version} adds {constant}, and added {known} before")
        if constant in self._no_models:
            self._broken.add(version)

    def promote(self, choose: Choose) -> None:
        """Moves an alias to any version, broken ones too."""
        self.operations += 1
        self._move(choose(ALIASES), choose(self._there()))

    def _move(self, alias: str, version: int) -> None:
        try:
            self._point(alias, version)
        except _AWAY:
            self._unanswered[alias].add(version)
        except NotFoundError:
            if version not in self._perhaps_gone:
                raise

    def _point(self, alias: str, version: int) -> None:
        moved = self._client.promote(f"{self.path}@{alias}", version)
        self.acknowledged.append((alias, moved.mod_rev, version))
        self._pointed[alias] = version

    def promote_with_an_old_place(self, choose: Choose) -> None:
        """Two promoters and one alias: who read before the other moved is refused."""
        self.operations += 1
        alias, version = choose(ALIASES), choose(self._there())
        try:
            moved = self._client.promote(f"{self.path}@{alias}", version, expected_mod_rev=1)
        except (ConflictError, *_AWAY):
            return
        raise Violation(f"{alias} moved at revision {moved.mod_rev} although revision 1 was expected")

    def roll_back(self, choose: Choose) -> None:
        """Moves an alias back."""
        self.operations += 1
        alias = choose(ALIASES)
        try:
            moved = self._client.rollback(f"{self.path}@{alias}")
        except _AWAY:
            # To wherever it came from by the time that this is carried out.
            self._perhaps_rolled_back.add(alias)
            return
        except (ConflictError, NotFoundError):
            # There was no move yet to go back from, or what it pointed to is gone.
            return
        self.acknowledged.append((alias, moved.mod_rev, moved.version))
        self._pointed[alias] = moved.version

    def delete(self, choose: Choose) -> None:
        """Deletes a version, which is refused while an alias points to it."""
        self.operations += 1
        version = choose(self._there())
        held = any(self._possible(alias) == {version} for alias in ALIASES)
        try:
            self._client.delete_version(f"{self.path}@{version}")
        except (InUseError, NotFoundError):
            return
        except _AWAY:
            self._perhaps_gone.add(version)
            return
        if held:
            raise Violation(f"version {version} was deleted although an alias pointed to it")
        self._gone.add(version)

    def read(self, choose: Choose) -> None:
        """Reads where an alias points; that is what was acknowledged last, or tried since."""
        self.operations += 1
        alias = choose(ALIASES)
        try:
            version = self._client.resolve(f"{self.path}@{alias}").version.version
        except _AWAY:
            return
        if version not in self._possible(alias):
            raise Violation(f"{alias} is read as {version}, and can only be one of {self._possible(alias)}")

    def _possible(self, alias: str) -> set[int]:
        if alias in self._perhaps_rolled_back:
            return set(self._constants)
        return {self._pointed[alias], *self._unanswered[alias]}

    def _there(self) -> list[int]:
        return sorted(set(self._constants) - self._gone)

    # -- the verdict -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """What must hold at any time.

        Raises:
            Violation: It does not.
        """
        for seen in self.seen:
            if seen.failures:
                raise Violation(f"{len(seen.failures)} calls of {seen.handle} failed, such as {seen.failures[0]}")
            for version, added in list(seen.answers):
                expected = self._constants.get(version, added)
                if added != expected or version in self._broken:
                    raise Violation(f"{seen.handle}: version {version} added {added}, and is to add {expected}")
        if self._watching:
            raise Violation(self._watching[0])
        for number, one in enumerate(self.world.replicas):
            if number not in self.world.down and not one.running:
                raise Violation(f"server {number} ended by itself with {one.returncode}: {one.output[-2000:]}")

    def answers(self) -> dict[str, int]:
        """How often each handle answered."""
        return {seen.handle: sum(seen.answers.values()) for seen in self.seen}

    def end(self) -> None:
        """Heals the world, waits until everybody holds what is stored, and compares.

        Raises:
            Violation: Something is lost, or somebody does not get there.
        """
        self.world.heal()
        try:
            self._look()
            # Something to arrive at that answers, and that watchers can tell from all before it.
            final = _patiently(self._publish_final)
            self._wait(
                lambda: _patiently(lambda: self._at_the_end(final)),
                lambda: (
                    f"handles serve {[(model.ref, model.version, model.state) for model in self._models]}, "
                    f"answered {[seen.last for seen in self.seen]} last, where {final} is promoted"
                ),
            )
            # What handles answer from now on may be of a move that comes behind this look at history.
            self._stop()
            self.history = _patiently(lambda: list(self._client.iter_alias_moves(self.path)))
            last = max(move.rev for move in self.history)
            self._wait(
                lambda: all(told and told[-1].rev >= last for told in self.told),
                lambda: f"watchers are at {[told[-1].rev if told else 0 for told in self.told]}, not at {last}",
            )
        finally:
            self._stack.close()
        self.judge()

    def close(self) -> None:
        """Lets go of its clients, where it did not come to its end."""
        self.world.heal()
        self._stack.close()

    def _publish_final(self) -> int:
        constant = float(next(self._attempts))
        version = _publish(self._client, self.world.directory, self.path, constant)
        self._note_version(version, constant)
        return version

    def _at_the_end(self, final: int) -> bool:
        """Whether everything serves ``final``; a call from before that comes late is outdone."""
        self.check()
        for alias in ALIASES:
            if self._client.resolve(f"{self.path}@{alias}").version.version != final:
                self._point(alias, final)
        return all(model.version == final for model in self._models) and all(seen.last == final for seen in self.seen)

    def judge(self) -> None:
        """Compares what everybody saw with the history.

        Raises:
            Violation: They do not fit.
        """
        self.check()
        history = self.history
        stored = {(move.name, move.rev, move.to_version) for move in history}
        if lost := [one for one in self.acknowledged if one not in stored]:
            raise Violation(f"{len(lost)} of {len(self.acknowledged)} acknowledged moves are lost, such as {lost[0]}")
        for number, told in enumerate(self.told):
            heard = {(str(one.object).rpartition("@")[2], one.rev) for one in told if isinstance(one.state, dict)}
            missing = {(move.name, move.rev) for move in history if move.rev > self._begun} - heard
            if missing:
                raise Violation(f"watcher {number} was never told of {sorted(missing)[:3]}")
        for seen in self.seen:
            pointed = {move.to_version for move in history if move.name == seen.alias}
            for version, _ in seen.answers:
                if version not in pointed:
                    raise Violation(f"{seen.handle} answered by version {version}, to which {seen.alias} never pointed")
            if not seen.answers:
                raise Violation(f"{seen.handle} answered nothing")

    def _wait(self, holds: Callable[[], bool], why: Callable[[], str]) -> None:
        until = time.monotonic() + _PATIENCE_S
        while not holds():
            if time.monotonic() > until:
                raise Violation(why())
            time.sleep(0.05)


def _patiently(ask: Callable[[], T]) -> T:
    until = time.monotonic() + _PATIENCE_S
    while True:
        try:
            return ask()
        except _AWAY:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)


def _publish(client: modelbox.sync.Client, directory: Path, path: str, constant: float, *, broken: bool = False) -> int:
    file = directory / f"{path.replace('/', '-')}-{constant:g}.onnx"
    file.write_bytes(unknown_operator() if broken else add_constant(constant))
    try:
        made = client.publish(
            path, file, entrypoint=file.name, signature=None if broken else "auto", labels={"adds": f"{constant:g}"}
        )
        return made.item.version
    finally:
        file.unlink()
