"""Many watchers in one process: ``python -m bench.watchers HOST PORT CONNECTIONS STREAMS OBJECT``.

Each is a gRPC stream of its own over a few connections. Prints ``ready`` once all have their first bookmark, then one
JSON line per revision that has reached all of them: the clock (CLOCK_MONOTONIC, in seconds) at each arrival. Ends with
its standard input. Messages stay bytes but for the first of each kind: what is measured is the way to a watcher, and a
thousand decoders in one process are not on it.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any

from grpclib.client import Channel
from grpclib.config import Configuration
from grpclib.const import Cardinality
from grpclib.encoding.base import CodecBase

from modelbox import _wire
from modelbox._proto.modelbox import v1 as pb
from modelbox.feed import Filter, Revision

_PATH = "/modelbox.v1.WatchService/Watch"


class _Bytes(CodecBase):
    __content_subtype__ = "proto"

    def encode(self, message: Any, message_type: Any) -> bytes:
        return bytes(message)

    def decode(self, data: bytes, message_type: Any) -> bytes:
        return data


class _Watchers:
    def __init__(self, streams: int, wanted: str) -> None:
        self._request = pb.WatchRequest(filter=_wire.pack_filter(Filter(objects=(wanted,))))
        self._streams = streams
        self._ready = 0
        self._revisions: dict[bytes, int | None] = {}
        self._arrivals: dict[int, list[float]] = {}

    async def watch(self, channel: Channel) -> None:
        async with channel.request(_PATH, Cardinality.UNARY_STREAM, pb.WatchRequest, bytes) as stream:
            await stream.send_message(self._request, end=True)
            first = True
            while (data := await stream.recv_message()) is not None:
                now = time.monotonic()
                if first:
                    first = False
                    self._ready += 1
                    if self._ready == self._streams:
                        print("ready", flush=True)
                if (rev := self._revision(data)) is not None:
                    self._arrived(rev, now)

    def _revision(self, data: bytes) -> int | None:
        if data not in self._revisions:
            item = _wire.unpack_feed_item(_wire.decode_message(pb.WatchResponse, data))
            self._revisions[data] = item.rev if isinstance(item, Revision) else None
        return self._revisions[data]

    def _arrived(self, rev: int, now: float) -> None:
        arrivals = self._arrivals.setdefault(rev, [])
        arrivals.append(now)
        if len(arrivals) == self._streams:
            print(json.dumps({"rev": rev, "at": self._arrivals.pop(rev)}), flush=True)


async def _main(host: str, port: int, connections: int, streams: int, wanted: str) -> None:
    watchers = _Watchers(streams, wanted)
    config = Configuration(http2_connection_window_size=16 << 20, http2_stream_window_size=1 << 20)
    channels = [Channel(host, port, codec=_Bytes(), config=config) for _ in range(connections)]
    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(watchers.watch(channels[n % connections])) for n in range(streams)]
        await asyncio.to_thread(sys.stdin.read)
        for task in tasks:
            task.cancel()
    for channel in channels:
        channel.close()


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), sys.argv[5]))
