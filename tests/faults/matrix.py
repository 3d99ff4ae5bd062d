"""The fault matrix: what can go wrong, and what ModelBox promises then.

Only words; which tests prove a row is said at the tests (`tests.faults.registry`).
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ("MATRIX", "WITHOUT_TEST", "Row", "Section")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One fault.

    Attributes:
        fault: What happens.
        promise: What ModelBox does then.
    """

    number: int
    fault: str
    promise: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Faults of one part."""

    title: str
    rows: tuple[Row, ...]


def _rows(first: int, *rows: tuple[str, str]) -> tuple[Row, ...]:
    return tuple(Row(number=first + at, fault=fault, promise=promise) for at, (fault, promise) in enumerate(rows))


_IMPAIRED = _rows(
    1,
    (
        "The server is killed again and again while a model serves.",
        "No call fails. The loader comes back by itself, goes on where its cursor was, and sees every committed move.",
    ),
    (
        "The server is down when a program starts; its cache is warm.",
        "`load` gives the last version that served here after `offline_after_s` (1 s), marked stale; "
        "`modelbox.stale` is 1 until the server is back.",
    ),
    (
        "The server is down when a program starts; its cache is cold.",
        "`load` raises a `TransportError` within the caller's timeout and leaves no file but locks.",
    ),
    (
        "The server accepts connections and answers nothing (SIGSTOP).",
        "A call ends at its deadline. A watch that is silent for 30 s is broken, and the model is marked stale; "
        "it serves all the while and follows again when the server wakes.",
    ),
    (
        "A network that swallows packets: no reset, no answer.",
        "As in 4: silence is noticed within 30 s, nothing hangs past its deadline, and all goes on when packets do.",
    ),
    (
        "The connection is reset in the middle of a download or an upload.",
        "It goes on at the byte where it broke; the whole file's digest is checked all the same.",
    ),
    (
        "A server of 1 KiB/s; answers that come byte by byte.",
        "What moves at least at `min_bytes_per_s` is waited for however long it takes, what trickles is broken off "
        "and resumed; byte by byte gives the same results.",
    ),
    (
        "Every call fails with UNAVAILABLE.",
        "A client repeats at most a tenth of its calls beyond a first burst of ten, so it never multiplies the load.",
    ),
    (
        "A hundred clients lose their server at once.",
        "Each resumes its watch by its cursor, at a time drawn by full jitter; none lists again, and none downloads "
        "what it has.",
    ),
    (
        "The server comes up for two seconds, and goes down for two, without end.",
        "Pauses grow up to 10 s (5 s on average), and begin anew only after a stream lasted a minute.",
    ),
    (
        "The URL leads to another ModelBox than before.",
        "It is noticed by the server's id: everything is listed anew, logged, and served by what the new one says. "
        "With `signatures = require`, only what a trusted key signed for this very reference.",
    ),
)

_LYING = _rows(
    12,
    (
        "A bit of a file is flipped on its way.",
        "The file is dropped and fetched again once; three such fetches in a row and the version is quarantined. "
        "It is never opened, and the old version goes on.",
    ),
    (
        "A file is shorter or longer than declared.",
        "Reading stops at the declared size; the file is refused and never gets its name.",
    ),
    (
        "A manifest declares ten terabytes.",
        "Refused before anything is asked for or allocated: by the client's limit, or by the free space.",
    ),
    (
        "A manifest that is not the announced one; the valid manifest of another model.",
        "Refused in stage `resolve`, told to the fleet's list, and asked for again later; what serves goes on.",
    ),
    (
        "An older answer is replayed.",
        "Its revision is lower than what is held, so it is ignored, with a warning in the log.",
    ),
    (
        "Time is frozen: heartbeats, but never news; or it jumps ahead to revision 2^63-1.",
        "A freeze cannot be told from calm without signed time: `modelbox.state.age` grows, and every reference is "
        "asked for about every 10 minutes. A jump of more than 10^9 revisions is a protocol error and changes nothing.",
    ),
    (
        "Events come twice.",
        "The second one changes nothing: one swap.",
    ),
    (
        "Events are lost or come out of order.",
        "The link to the revision before does not fit: the stream is taken up again from the last revision that did, "
        "and everything is listed again if that does not help.",
    ),
    (
        "Events about what was not asked for; a bookmark beyond events that never came.",
        "The former are ignored. The latter is found by the next event's link, or by the check every 10 minutes.",
    ),
)

_FEED = _rows(
    21,
    (
        "Eight writers and many readers of one PostgreSQL or MariaDB.",
        "No revision is lost, none is seen twice, and all readers see one order.",
    ),
    (
        "PostgreSQL or MariaDB is killed again and again.",
        "What was acknowledged is stored; nobody sees what is not.",
    ),
    (
        "A server on SQLite is killed at any moment.",
        "What was acknowledged is stored, and the chain of the history is whole.",
    ),
    (
        "Two callers move one alias at the same time.",
        "One wins, the other gets `ConflictError` with what is there now.",
    ),
    (
        "The database is restored from an older copy, and goes on.",
        "A cursor of the lost history is answered with RESYNC; loaders and watchers list again and converge.",
    ),
    (
        "A cursor is older than what the feed keeps.",
        "RESYNC(COMPACTED), then the state; the cursor right at the edge is honoured.",
    ),
    (
        "A cursor is ahead of the history.",
        "RESYNC, one list, and no loop.",
    ),
    (
        "A watcher never reads.",
        "Its stream ends after `send_timeout_s`; memory stays flat, and nobody else waits.",
    ),
    (
        "A thousand watchers and a burst of changes.",
        "All of them hear of everything; one ring holds it, not a queue for each.",
    ),
    (
        "PostgreSQL's NOTIFY is lost, or its connection dies.",
        "News come by polling within a second, and at once again when the connection is back.",
    ),
    (
        "Somebody else holds the lock of the database.",
        "Writers wait for a bounded time, then are told `ServerBusy` and when to come again; reads go on; a server "
        "that stands still with the lock is cut off.",
    ),
    (
        "The database's disk is full.",
        "Writes are refused as `LimitError`, reads and watches go on, and writes too once there is room.",
    ),
    (
        "fsync fails.",
        "The writer stops for good and acknowledges nothing more: what a failed fsync left on disk is not known.",
    ),
    (
        "The server is killed between a file's bytes and its row.",
        "Never a row without bytes. Bytes without a row are collected after the grace time.",
    ),
    (
        "The wall clock jumps ten years, forth and back.",
        "Order comes from revisions only, and durations from a clock that does not jump: watches, calls and leases "
        "go on.",
    ),
    (
        "Servers that share a database restart one after the other.",
        "A cursor of one is good at the others; nothing is lost, and no call fails.",
    ),
    (
        "A client and a server of different releases.",
        "Fields and kinds that are not known are passed over; an item of an unknown kind only moves the cursor.",
    ),
)

_DISK = _rows(
    38,
    (
        "SIGKILL at any system call while a version is stored.",
        "A file is there whole, or not at all.",
    ),
    (
        "Eight processes share a cold cache.",
        "One or two download; all of them see the same files.",
    ),
    (
        "File locks do nothing (some network file systems).",
        "Still right, only wasteful: each writer has a file of its own.",
    ),
    (
        "The cache is read-only.",
        "What it holds whole is used; anything else is a `CacheError` that says what to do.",
    ),
    (
        "The cache is full.",
        "The least recently used versions go, and on a full disk those that no reference may come back to; what any "
        "process serves is leased, and never goes.",
    ),
    (
        "The disk fills up during a download.",
        "The temporary file is removed, the old version goes on, and it is tried again with growing pauses.",
    ),
    (
        "Another program truncates or overwrites the files of a model.",
        "Files are read-only, and never written to by us again. A file of another size or time is noticed at the next "
        "opening and made again; `modelbox cache verify` finds the rest. What is mapped by a running session cannot "
        "be protected.",
    ),
    (
        "Symbolic links are planted in the cache.",
        "They are not followed, and the directory is refused if others can write to it.",
    ),
    (
        "Litter of crashes; a torn record of the last good version.",
        "Litter goes when it is old and nobody holds it. A torn record reads as the one before it, or as none.",
    ),
)

_MODELS = _rows(
    47,
    (
        "Garbage, half a file or nothing in place of a model.",
        "`ModelInvalid`; quarantined until the alias moves; the old version goes on.",
    ),
    (
        "An operator that is not there.",
        "`UnsupportedOperator` that names it; the old version goes on.",
    ),
    (
        "A new version with another interface.",
        "Refused unless every call of today fits it (`compatibility`); the old version goes on.",
    ),
    (
        "External data that point out of the version: `..`, absolute paths, links.",
        "Refused by our own reading of the file, before onnxruntime sees it.",
    ),
    (
        "External data with offsets or keys that make no sense.",
        "Refused by our own reading of the file, before onnxruntime sees it.",
    ),
    (
        "A file of 146 bytes that asks for gigabytes of memory, crashes the runtime, or opens without end.",
        "Refused by our own reading of the file: what it would allocate is added up before it is opened. What no "
        "reading finds is refused with `probe = on`, which opens it in a process of its own first, with limits of "
        "memory and time; the old version goes on.",
    ),
    (
        "A model that never ends.",
        "Terminated at `warm_up_timeout_s` and refused; the old version goes on.",
    ),
    (
        "Golden inputs give other values, or no numbers; a model that is slower.",
        "Other values and NaN where numbers were promised refuse the version. One whose runs take more than "
        "`slower_factor` (10) times as long as those of the one that serves is told of in the log and to the fleet's "
        "list, and refused with `slower = refuse`.",
    ),
    (
        "There is no memory for a second session.",
        "The old version goes on, the failure is told, and it is tried again with growing pauses, not quarantined.",
    ),
    (
        "Fifty promotions in ten seconds.",
        "The newest counts: a version that is overtaken on its way is given up, and the last one serves in the end. "
        "With `swap_interval_s`, two swaps of a reference are at least so far apart; a rollback does not wait.",
    ),
    (
        "A swap under load.",
        "Every answer is of exactly one version, no call fails, and the old one's memory is free after its last call.",
    ),
    (
        "A call that never ends holds the old version.",
        "Terminated at `drain_timeout_s`; then its memory is free.",
    ),
    (
        "Pickles, archives, shared libraries and files that are two things at once.",
        "Stored and downloaded, never opened: `FormatRefused`. Nothing here unpacks an archive or loads a pickle.",
    ),
)

_INPUT = _rows(
    60,
    (
        "Names with `..`, `/`, NUL, direction marks, look-alikes, 10 kB, escapes within escapes.",
        "INVALID_ARGUMENT on every route; nothing is written anywhere, and nothing raw is logged.",
    ),
    (
        "Metrics that are NaN or infinite, steps beyond 64 bits, points that come again.",
        "Kept as what they are, refused by name, stored once.",
    ),
    (
        "Ten million points in one series.",
        "Batches are bounded, reads are sampled, memory stays flat, and the feed does not hear of it.",
    ),
    (
        "A message that announces a gibibyte.",
        "Refused at its header.",
    ),
    (
        "Compressed messages, bad protobuf, deep nesting, what is no HTTP/2.",
        "A clean status; it ends its own stream or connection only.",
    ),
    (
        "Twenty thousand streams that are opened and reset.",
        "The connection is closed; nobody else waits.",
    ),
    (
        "Hundreds of silent connections; headers and bodies that trickle, lie about their length, or never end.",
        "Closed at their deadlines; sizes are capped while they are read.",
    ),
    (
        "Metadata of a million keys, of 100 MiB, nested 10,000 deep.",
        "Refused by number, size and depth.",
    ),
    (
        "Tokens of other namespaces, revoked, expired, cut off; a digest without a right to its file.",
        "Denied by default; hidden and absent look the same; open watches are cut within seconds of a revoke.",
    ),
    (
        "Pages of other sites; names and files that are scripts.",
        "Host and origin are checked, text is escaped, files come as attachments that no browser runs.",
    ),
    (
        "Secrets in addresses, settings and headers.",
        "In no log, error, trace, `repr` or metric.",
    ),
)

MATRIX = (
    Section(title="The client while its server is impaired", rows=_IMPAIRED),
    Section(title="A server that lies, and bytes that rot", rows=_LYING),
    Section(title="The change feed and the database", rows=_FEED),
    Section(title="Cache and disk of the client", rows=_DISK),
    Section(title="Models", rows=_MODELS),
    Section(title="What callers send", rows=_INPUT),
)

WITHOUT_TEST: dict[int, str] = {}
"""Rows that cannot be proved on one machine, and why."""
