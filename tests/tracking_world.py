"""Tracking beside a model of it in plain Python: what is done goes to a real server and into dictionaries, and `check`
compares the two.

`World` owns a namespace of its own on a server, a client, and a spool with its delivery. Every method that changes
something returns when the client says that it is done (or, for what goes through the spool, when the log call has
returned), so the model holds what was acknowledged and nothing else. Calls that failed because the server was killed
are repeated until they are answered, as a program would.
"""

from __future__ import annotations

import random
import secrets
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar

from modelbox import sync
from modelbox.config import load_client_config
from modelbox.engine import Engine
from modelbox.errors import ConflictError, InvalidError, ModelBoxError
from modelbox.objects import JsonValue
from modelbox.run import LiveRun
from modelbox.spool import PushedSpool, spool_status
from modelbox.spool.host import SpoolHost
from modelbox.spool.push import Destination
from modelbox.spool.remote import Remote
from modelbox.tracking import (
    AttributeKind,
    Delivered,
    ObjectKind,
    Operation,
    RunStatus,
    new_id,
)
from tests.logging_process import logging_to
from tests.server import ServerProcess
from tests.tracking_check import Checks
from tests.tracking_model import GONE, NOW, Item, Live, Value, same

__all__ = ("Recorder", "World")

_PATIENCE_S = 60.0
T = TypeVar("T")


class Recorder:
    """Delivers, and remembers what was delivered and what came of it."""

    def __init__(self, to: Destination) -> None:
        self._to = to
        self.delivered: list[tuple[str, Sequence[Operation], Delivered]] = []

    async def deliver(self, spool: str, operations: Sequence[Operation]) -> Delivered:
        """See `Destination`."""
        answer = await self._to.deliver(spool, operations)
        self.delivered.append((spool, tuple(operations), answer))
        return answer

    async def upload(
        self,
        parent: str,
        name: str,
        files: Mapping[str, Path],
        *,
        labels: Mapping[str, str],
        metadata: Mapping[str, JsonValue],
    ) -> None:
        """See `Destination`."""
        await self._to.upload(parent, name, files, labels=labels, metadata=metadata)


class _Elsewhere:
    """A destination whose calls are made on an engine of its own, which outlives the spool."""

    def __init__(self, to: Destination, engine: Engine) -> None:
        self._to = to
        self._engine = engine

    async def deliver(self, spool: str, operations: Sequence[Operation]) -> Delivered:
        return await self._engine.call(self._to.deliver, spool, operations)

    async def upload(self, parent: str, name: str, files: Mapping[str, Path], **values: Any) -> None:
        await self._engine.call(lambda: self._to.upload(parent, name, files, **values))


class World:
    """A namespace on a server, and the model of it.

    Args:
        server: Running; may be killed and started again by `kill`.
        directory: For spools and caches.
        wrap: Made of the client, used instead of it; for tests of `check`.
        deliver_by: Made of the destination of the spool, used instead of it; for the same.
    """

    def __init__(
        self,
        server: ServerProcess,
        directory: Path,
        *,
        wrap: Callable[[sync.Client], Any] = lambda client: client,
        deliver_by: Callable[[Destination], Destination] = lambda to: to,
    ) -> None:
        self.server = server
        self.namespace = f"w-{secrets.token_hex(5)}"
        self.items: dict[str, Item] = {}
        self.lives: list[Live] = []
        self.experiments: list[str] = []
        self.kills = 0
        self.checked = 0
        self._directory = directory
        self._names = 0
        self._programs = 0
        self.artifacts: dict[str, str] = {}
        self._config = load_client_config(
            url=server.url, spool_dir=directory / "spool", cache_dir=directory / "cache", request_timeout_s=30
        )
        self._plain = sync.Client(config=self._config)
        self.client = wrap(self._plain)
        self._engine = Engine(name="replay")
        self._remote = Remote(self._config)
        self.recorder = Recorder(deliver_by(_Elsewhere(self._remote, self._engine)))
        self.host = SpoolHost(self._config, destination=self.recorder)
        self._dirty: set[str] = set()
        self._killer: threading.Thread | None = None
        # The beginning of the feed: the namespace and an experiment.
        self.create_experiment()
        self._checks = Checks(self)

    def check(self, chance: random.Random) -> None:
        """Compares everything that can be read with the model, when no kill is under way and all is delivered.

        Args:
            chance: Decides which queries are asked.
        """
        self.wait_killed()
        self.checked = self.kills
        self.flush()
        self._checks.run(chance)

    def close(self) -> None:
        """Ends what it began; the namespace stays on the server."""
        if self._killer is not None:
            self._killer.join()
        self.host.close()
        self._engine.call_sync(self._remote.aclose)
        self._engine.close()
        self._plain.close()

    # -- doing ---------------------------------------------------------------------------------------------------------

    def _name(self) -> str:
        self._names += 1
        return f"n{self._names}"

    def sure(self, call: Callable[[], T]) -> T:
        """Calls until there is an answer."""
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            try:
                return call()
            except ModelBoxError as exc:
                if not exc.retryable:
                    raise
                assert time.monotonic() < deadline, "the server does not come back"
                time.sleep(0.05)

    def _settle(self, *items: Item) -> None:
        """Waits for what the spool still has of some objects, before they are changed by other ways."""
        if any(item.uid in self._dirty for item in items):
            self.flush()

    def flush(self) -> None:
        """Waits until all that was logged is delivered."""
        assert self.host.wait(self.host.log.last_seq, _PATIENCE_S), f"not delivered: {self.host.error}"
        self._dirty.clear()

    def create_experiment(self) -> Item:
        """Makes an experiment."""
        name = self._name()
        made = self.sure(lambda: self.client.create_experiment(f"{self.namespace}/{name}", owner="ana"))
        return self._add(made.item.id, ObjectKind.EXPERIMENT, (), {"name": name, "owner": "ana"})

    def create_run(self, experiment: Item, parent: Item | None = None, *, params: Mapping[str, JsonValue]) -> Item:
        """Makes a run, by its experiment's name or id."""
        self._settle(experiment, *([parent] if parent else []))
        uid, name = new_id(ObjectKind.RUN), self._name()
        where = experiment.uid if self._names % 2 else f"{self.namespace}/{experiment.about['name']}"
        make = {"id": uid, "name": name, "parent": parent.uid if parent else "", "params": params, "started_at": NOW}
        self.sure(lambda: self.client.create_run(where, **make))
        return self._run(uid, name, experiment, parent, params)

    def _run(self, uid: str, name: str, experiment: Item, parent: Item | None, params: Mapping[str, JsonValue]) -> Item:
        about = {
            "name": name,
            "status": "running",
            "reason": "",
            "experiment": experiment.about["name"],
            "experiment_id": experiment.uid,
            "parent_id": parent.uid if parent else "",
        }
        item = self._add(uid, ObjectKind.RUN, (experiment.uid, *([parent.uid] if parent else [])), about)
        for key, value in params.items():
            item.set(AttributeKind.PARAM, key, value)
        return item

    def _add(self, uid: str, kind: ObjectKind, above: tuple[str, ...], about: dict[str, Any]) -> Item:
        roots = [self.items[one].root for one in above if self.items[one].root]
        item = Item(uid=uid, kind=kind, above=above, about=about, born_hidden=bool(roots))
        item.root = roots[0] if roots else ""
        self.items[uid] = item
        return item

    def of(self, *kinds: ObjectKind) -> list[Item]:
        """What there is of some kinds, in order of making."""
        return [item for item in self.items.values() if item.kind in kinds]

    def log(self, item: Item, values: Mapping[str, Value], step: int, time_us: int) -> bool:
        """Logs points by a call of the client; returns whether they were taken."""
        self._settle(item)
        at = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_us)
        if not all(item.takes(key, value) for key, value in values.items()):
            try:
                self.sure(lambda: self.client.log_metrics(item.uid, values, step=step, at=at))
            except InvalidError:
                return False
            raise AssertionError(f"points of another kind were taken: {values}")
        self.sure(lambda: self.client.log_metrics(item.uid, values, step=step, at=at))
        for key, value in values.items():
            item.log(key, step, time_us, value)
        return True

    def log_series(self, item: Item, key: str, steps: Sequence[int], values: Sequence[float], time_us: int) -> None:
        """Logs many numbers by a call of the client, where the metric may have them."""
        self._settle(item)
        if item.takes(key, 0.0):
            self.sure(lambda: self.client.log_series(item.uid, key, steps, values, times_us=time_us))
            for step, value in zip(steps, values, strict=True):
                item.log(key, step, time_us, value)

    def set_params(self, item: Item, values: Mapping[str, JsonValue], *, overwrite: bool) -> bool:
        """Sets parameters; returns whether they were taken."""
        self._settle(item)
        known = item.values[AttributeKind.PARAM]
        fits = overwrite or all(same(known.get(key, value), value) for key, value in values.items())
        try:
            self.sure(lambda: self.client.set_params(item.uid, values, overwrite=overwrite))
        except ConflictError:
            assert not fits, f"{values} were refused beside {known}"
            return False
        assert fits, f"{values} were taken beside {known}"
        for key, value in values.items():
            item.set(AttributeKind.PARAM, key, value)
        return True

    def set_values(self, item: Item, kind: AttributeKind, values: Mapping[str, Any]) -> None:
        """Sets tags, labels or metadata."""
        self._settle(item)
        calls = {
            AttributeKind.TAG: self.client.set_tags,
            AttributeKind.LABEL: self.client.set_labels,
            AttributeKind.METADATA: self.client.set_metadata,
        }
        self.sure(lambda: calls[kind](item.uid, values))
        for key, value in values.items():
            item.set(kind, key, value)

    def remove_values(self, item: Item, kind: AttributeKind, keys: Sequence[str]) -> None:
        """Removes values by key, those among them that there are."""
        self._settle(item)
        self.sure(lambda: self.client.remove_attributes(item.uid, kind, keys))
        for key in keys:
            item.set(kind, key, GONE)

    def log_event(self, item: Item) -> None:
        """Reports an event; a call that is not answered is not repeated, since it would be another event."""
        self._settle(item)
        name = self._name()
        try:
            item.events[self.client.log_event(item.uid, name, at=NOW).id] = name
        except ModelBoxError as exc:
            if not exc.retryable:
                raise
            item.perhaps.add(name)

    def add_checkpoint(self, parent: Item, epoch: int) -> None:
        """Makes the checkpoint of an epoch; one that is there stays as it is."""
        self._settle(parent)
        made = self.sure(
            lambda: self.client.create_checkpoint(parent.uid, epoch, step=epoch, metrics={"acc": epoch / 4})
        )
        if made.item.id not in self.items:
            self._checkpoint(made.item.id, parent, epoch)

    def _checkpoint(self, uid: str, parent: Item, epoch: int) -> None:
        same = [
            one for one in self.of(ObjectKind.CHECKPOINT) if (one.above, one.about["epoch"]) == ((parent.uid,), epoch)
        ]
        assert not same, f"a second checkpoint {uid} of the epoch {epoch}"
        self._add(uid, ObjectKind.CHECKPOINT, (parent.uid,), {"epoch": epoch, "step": epoch})

    def end(self, item: Item, status: RunStatus) -> None:
        """Sets a run's status."""
        self._settle(item)
        self.sure(lambda: self.client.update_run(item.uid, status=status))
        item.about["status"] = status.value
        if status is RunStatus.RUNNING:
            item.about["reason"] = ""

    def _below(self, item: Item) -> list[Item]:
        found, rest = [], [item]
        while rest:
            one = rest.pop()
            found.append(one)
            rest += [other for other in self.items.values() if one.uid in other.above and other not in found]
        return list({other.uid: other for other in found}.values())

    def _artifacts_of(self, items: Sequence[Item]) -> int:
        owners = {item.uid for item in items}
        return sum(owner in owners for owner in self.artifacts.values())

    def delete(self, item: Item) -> None:
        """Puts something into the bin."""
        self.flush()
        taken = [] if item.root else [one for one in self._below(item) if not one.root]
        done = self.sure(lambda: self.client.delete_objects(item.uid))
        # A call whose answer was lost was carried out, and its repetition finds nothing to do.
        count = len(taken) + self._artifacts_of(taken)
        assert done in (0, count), f"{done} objects went into the bin, not {count}"
        for one in taken:
            one.root = item.uid

    def restore(self, item: Item) -> bool:
        """Takes something out of the bin, unless what it belongs to is there; returns whether."""
        self.flush()
        above = item.root not in ("", item.uid) or any(self.items[one].root for one in item.above)
        try:
            done = self.sure(lambda: self.client.restore_objects(item.uid))
        except ConflictError:
            assert item.root
            assert above
            return False
        assert not (item.root and above), f"{item.uid} came out of the bin below something in it"
        back = [one for one in self.items.values() if item.root and one.root == item.uid]
        count = len(back) + self._artifacts_of(back)
        assert done in (0, count), f"{done} objects came back, not {count}"
        for one in back:
            one.root = ""
        return True

    # -- through the spool ---------------------------------------------------------------------------------------------

    def start_live(self, experiment: Item, parent: Item | None, *, params: Mapping[str, JsonValue]) -> Live:
        """Begins a run that is logged through the spool."""
        self._settle(experiment, *([parent] if parent else []))
        name = self._name()
        run = LiveRun(
            f"{self.namespace}/{experiment.about['name']}",
            self._config,
            name=name,
            params=params,
            parent=parent.uid if parent else None,
            capture=False,
            host=self.host,
        )
        run.start()
        self._dirty.add(run.id)
        live = Live(run=run, item=self._run(run.id, name, experiment, parent, {}))
        self._live_params(live, params, overwrite=False)
        self.lives.append(live)
        return live

    def live_log(self, live: Live, values: Mapping[str, Value], step: int, time_us: int) -> None:
        """Logs points; those that their metric cannot have are left out, here or there."""
        self._dirty.add(live.item.uid)
        live.run.log_metrics(values, step, at=datetime.fromtimestamp(0, UTC) + timedelta(microseconds=time_us))
        for key, value in values.items():
            text = isinstance(value, str)
            if live.kinds.setdefault(key, text) == text and live.item.takes(key, value):
                live.item.log(key, step, time_us, value)

    def live_params(self, live: Live, values: Mapping[str, JsonValue], *, overwrite: bool) -> None:
        """Logs parameters; those that have another value stay as they are."""
        self._dirty.add(live.item.uid)
        live.run.log_params(values, overwrite=overwrite)
        self._live_params(live, values, overwrite=overwrite)

    def _live_params(self, live: Live, values: Mapping[str, JsonValue], *, overwrite: bool) -> None:
        known = live.item.values[AttributeKind.PARAM]
        for key, value in values.items():
            if key in live.params and same(live.params[key], value):
                continue
            if key in live.params and not overwrite:
                continue
            live.params[key] = value
            if overwrite or key not in known:
                live.item.set(AttributeKind.PARAM, key, value)

    def live_values(self, live: Live, kind: AttributeKind, values: Mapping[str, Any]) -> None:
        """Sets tags, labels or metadata."""
        self._dirty.add(live.item.uid)
        calls: dict[AttributeKind, Callable[[Mapping[str, Any]], None]] = {
            AttributeKind.TAG: live.run.set_tags,
            AttributeKind.LABEL: live.run.set_labels,
            AttributeKind.METADATA: live.run.set_metadata,
        }
        calls[kind](values)
        for key, value in values.items():
            live.item.set(kind, key, value)

    def live_records(self, live: Live, epoch: int) -> None:
        """An event, a comment, and the checkpoint of an epoch."""
        self._dirty.add(live.item.uid)
        name = self._name()
        live.item.events[live.run.log_event(name, at=NOW)] = name
        live.item.comments[live.run.add_comment(name)] = name
        known = [one for one in self.of(ObjectKind.CHECKPOINT) if live.item.uid in one.above]
        uid = live.run.log_checkpoint(epoch, step=epoch, metrics={"acc": epoch / 4})
        if all(one.about["epoch"] != epoch for one in known):
            self._checkpoint(uid, live.item, epoch)
            self._dirty.add(uid)

    def finish_live(self, live: Live) -> None:
        """Ends a run."""
        self._dirty.add(live.item.uid)
        live.run.finish()
        if live.run.skipped or live.run.dropped:
            live.item.told.add("modelbox.incomplete")
        live.item.about["status"] = "finished"
        self.lives.remove(live)

    def replay(self, number: int) -> None:
        """Delivers something again that was delivered before, as a client does that has lost the answer."""
        if not self.recorder.delivered:
            return
        spool, operations, answer = self.recorder.delivered[number % len(self.recorder.delivered)]
        again = self.sure(lambda: self._engine.call_sync(self._remote.deliver, spool, operations))
        assert again.seq == answer.seq
        refused = {one.seq for one in answer.rejections}
        told = {one.seq for one in again.rejections}
        assert told <= refused

        def is_last() -> bool:
            return [one for of, _, one in self.recorder.delivered if of == spool][-1] is answer

        # The server may have taken the next ones meanwhile, whose answer is still on its way to us.
        deadline = time.monotonic() + 20
        while told != refused and is_last():
            assert time.monotonic() < deadline, "what was refused is not told again"
            time.sleep(0.01)

    def killed_program(self, experiment: Item, lines: int) -> None:
        """A program of its own logs, is killed, and what it left is delivered by another one."""
        self._programs += 1
        self._settle(experiment)
        spool_dir = self._directory / f"program-{self._programs}" / "spool"
        path = f"{self.namespace}/{experiment.about['name']}"
        with logging_to(self.server.url, spool_dir, path) as logger:
            logger.wait_for(lines)
            logger.kill()
        for pushed in self.sure(lambda: self._push(spool_dir)):
            assert pushed.refused == (), f"refused: {pushed.refused}"
        assert spool_status(spool_dir) == []
        found = self.sure(lambda: self.client.get_run(logger.run))
        item = self._run(logger.run, found.name, experiment, None, {})
        item.about |= {"status": "interrupted", "reason": "the program ended without saying so"}
        item.set(AttributeKind.METADATA, "pid", logger.process.pid)
        said, params = len(logger.said("step")), logger.said("param")
        # The call that the kill cut off was begun, and may be there.
        cut = {"step": said, "param": len(params) * 100}
        if self.sure(lambda: self.client.metric_summaries(item.uid))[0].count > said:
            said += 1
        if f"p{cut['param']}" in self.sure(lambda: self.client.get_params(item.uid)):
            params = [*params, cut["param"]]
        for step, time_us in enumerate(self.sure(lambda: self.client.read_series(item.uid, "loss")).times_us.tolist()):
            if step < said:
                item.log("loss", step, time_us, step / 2)
        for step in params:
            item.set(AttributeKind.PARAM, f"p{step}", step)
        artifacts = {one.name: one.files[0].size_bytes for one in self.client.iter_artifacts(item.uid)}
        assert {f"a{step}": len(str(step)) for step in logger.said("artifact")}.items() <= artifacts.items()
        self.artifacts |= {one.id: item.uid for one in self.client.iter_artifacts(item.uid)}

    def _push(self, spool_dir: Path) -> tuple[PushedSpool, ...]:
        pushed: tuple[PushedSpool, ...] = self.client.push_spools(spool_dir)
        for one in pushed:
            if one.error is not None:
                raise one.error
        return pushed

    # -- kills ---------------------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Kills the server and starts it again."""
        self.wait_killed()
        self._kill()

    def _kill(self) -> None:
        self.server.kill()
        self.server.restart()
        self.kills += 1

    @property
    def is_back(self) -> bool:
        """Whether no kill is under way."""
        return self._killer is None or not self._killer.is_alive()

    def kill_soon(self, delay_s: float) -> None:
        """Does so a moment later, whatever goes on then."""
        self.wait_killed()

        def kill() -> None:
            time.sleep(delay_s)
            self._kill()

        self._killer = threading.Thread(target=kill)
        self._killer.start()

    def wait_killed(self) -> None:
        """Waits until the server is back after `kill_soon`."""
        if self._killer is not None:
            self._killer.join()
            self._killer = None

    def kill_and_forget(self, work: Callable[[], object]) -> None:
        """A server that loses what it acknowledged: it is killed, and its disk is as it was before ``work``."""
        self.server.terminate()
        kept = self._directory / "kept"
        shutil.copytree(self.server.data_dir, kept)
        self.server.restart()
        work()
        self.server.kill()
        shutil.rmtree(self.server.data_dir)
        shutil.move(kept, self.server.data_dir)
        self.server.restart()
