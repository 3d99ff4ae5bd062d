"""How a run comes into the spool of this process, and what becomes of values that cannot be kept.

Owns `Recording`, what the parts of `modelbox.run.LiveRun` have in common.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Self

from modelbox._local_files import FilesArgument
from modelbox.errors import InvalidError, LimitError, ModelBoxError, UsageError
from modelbox.objects import JsonValue
from modelbox.refs import shown
from modelbox.spool.host import SpoolHost, open_host
from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import operation_data
from modelbox.tracking import NewRun, OperationPayload

if TYPE_CHECKING:
    from modelbox.config import ClientConfig

__all__ = ("Recording",)

_log = logging.getLogger(__name__)

_MAX_WARNED_KEYS = 1000


class Recording:
    """A run as the spool of this process knows it.

    Concurrency: any thread, and forked children, which record into spools of their own.
    """

    def __init__(
        self,
        new: NewRun,
        config: ClientConfig | None,
        host: SpoolHost | None,
        *,
        parent: Self | None,
        resumed: bool,
        strict: bool,
    ) -> None:
        self._new = new
        self._id = new.id
        self._config = config
        self._host = host
        self._parent = parent
        self._resumed = resumed
        self._strict = strict
        self._log: SpoolLog | None = None
        self._lock = threading.RLock()
        self._ids = {new.id}
        self._warned: set[str] = set()
        self._skipped = 0
        self._dropped = 0
        self._pid = 0

    def _spool(self) -> SpoolLog:
        log = self._log
        if log is None:
            if not self._pid:
                raise UsageError("this run has not begun: use it in `with client.start_run(…) as run`, or call start()")
            with self._lock:
                log = self._log or self._open()
        return log

    def _open(self) -> SpoolLog:
        """Opens this process's spool, and announces the run in it.

        Raises:
            ConfigError: There is no directory for one.
            LimitError: It has no room even for that: the next call tries again.
        """
        log = self._opened_host().log
        if not self._announce(log):
            raise LimitError(f"the spool {log.directory} has no room for the run {self._id}")
        self._log = log
        return log

    def _opened_host(self) -> SpoolHost:
        if self._host is None:
            from modelbox.config import load_client_config

            if self._config is None:
                self._config = load_client_config()
            self._host = open_host(self._config)
        return self._host

    def _announce(self, log: SpoolLog) -> bool:
        if self._parent is not None and self._parent._log is not log and not self._parent._announce(log):
            return False
        return self._resumed or log.append_operation(operation_data(self._new))

    def _put(self, payload: OperationPayload) -> None:
        self._put_data(operation_data(payload))

    def _put_data(self, data: bytes) -> bool:
        log = self._log or self._spool()
        kept = log.append_operation(data)
        if not kept:
            self._skipped += 1
        return kept

    def _put_files(
        self,
        parent: str,
        name: str,
        files: FilesArgument,
        labels: Mapping[str, str],
        metadata: Mapping[str, JsonValue],
    ) -> None:
        log = self._log or self._spool()
        if not log.append_files(parent, name, files, labels=labels, metadata=metadata):
            self._skipped += 1

    def _after_fork_in_child(self) -> None:
        # The child's spool is opened with its first call. The run stays its parent's to end.
        self._host = self._log = None
        self._lock = threading.RLock()

    # --- bad values ------------------------------------------------------------------------------------------------

    @contextmanager
    def _guarded(self, key: str) -> Iterator[None]:
        try:
            yield
        except UsageError:
            raise
        except Exception as exc:
            self._bad(key, exc)

    def _bad(self, key: object, error: Exception, *, count: int = 1) -> None:
        if not isinstance(error, ModelBoxError | OSError):
            error = InvalidError(f"what was logged as {shown(key)} cannot be kept: {error}")
        self._skipped += count
        if self._strict:
            raise error
        name = str(key)[:300]
        if name not in self._warned and len(self._warned) < _MAX_WARNED_KEYS:
            self._warned.add(name)
            _log.warning("the run %s goes on without this: %s", self._id, error)
