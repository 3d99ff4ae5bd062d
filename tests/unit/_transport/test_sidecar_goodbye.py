"""A connection whose sidecar has said good-bye: it answers what it was asked, and its news count no more."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from typing import Any

from modelbox._frames import Kind, json_frame, small_frame
from modelbox._transport.sidecar_call import Call, Question
from modelbox._transport.sidecar_connection import Connection
from modelbox._transport.sidecar_thread import ThreadLoop

WELCOME = {"max_frame_bytes": 1 << 20, "max_segments": 0, "max_shared_bytes": 0}


class Owner:
    """Keeps what a connection tells of itself."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.news: list[int] = []

    def welcomed(self, connection: Connection) -> None:
        self.told.append("welcomed")

    def leaving(self, connection: Connection) -> None:
        self.told.append("leaving")

    def again(self, calls: Sequence[Call], *, broken: bool) -> None:
        assert not calls

    def ended(self, connection: Connection, error: Exception | None) -> None:
        self.told.append("ended")

    def pushed(self, kind: int, id_: int, target: int, body: bytearray) -> None:
        self.news.append(target)


def test_news_behind_a_good_bye_are_of_handles_that_may_be_others_by_now() -> None:
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    loop, owner = ThreadLoop(), Owner()
    answers: list[int] = []
    with theirs:
        connection = Connection(owner, ours, loop)

        def opened(handle: int, body: dict[str, Any]) -> None:
            answers.append(handle)
            waiter.set_result(None)

        waiter = loop.make_waiter()
        connection.ask(Kind.OPEN, {"ref": "ns/model@prod"}, Question(opened, waiter.set_exception))
        state = {"state": "active", "stale": False, "version": 1}
        for frame in (
            json_frame(Kind.WELCOME, WELCOME),
            json_frame(Kind.STATE, state, target=7),
            small_frame(Kind.GOAWAY),
            json_frame(Kind.STATE, state, target=8),
            json_frame(Kind.EVENT, {"type": "StateConfirmed"}, target=8),
            json_frame(Kind.OPENED, state, 1, 9),
        ):
            theirs.sendall(frame)
        loop.wait(waiter)
    assert answers == [9]
    assert owner.news == [7]
    assert owner.told == ["welcomed", "leaving", "ended"]
