"""Files that ModelBox wrote and finds again: damaged ones are refused or passed over, and nothing else is touched."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import os
import struct
import zlib
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from modelbox.audit import AuditEntry
from modelbox.cli.audit_verify import read_export
from modelbox.errors import ConfigError, IntegrityError, InvalidError, NotFoundError
from modelbox.loader.cache_state import Quarantined, RefState, iter_states, load_state, save_state
from modelbox.objects import to_json
from modelbox.resume import ResumeFile
from modelbox.runtime.moving.lines import DamagedLine, count_rows, kinds_of_columns, read_rows, write_rows
from modelbox.runtime.moving.manifest import (
    BlobTotals,
    ExportManifest,
    FeedPlace,
    TableFile,
    read_manifest,
    write_manifest,
)
from modelbox.runtime.store.metric_schema import metric_points
from modelbox.runtime.store.schema import feed_changes
from modelbox.signing import SigningKey
from modelbox.signing.keys import create_key
from modelbox.signing.trust import Trust, TrustedFile
from modelbox.spool.format import HEADER, FilesRecord, SpooledFile, decode, encode_files, encode_payload, encode_point
from modelbox.spool.operations import operation_data, operations_of
from modelbox.spool.reader import Spool, find_spools
from modelbox.tracking import NewComment, ObjectKind, new_id
from tests.fuzzing import damaged, damaged_json, fuzzed, little_memory, nested
from tests.model_source import manifest_of, version_of

NOW = datetime(2026, 5, 3, 10, tzinfo=UTC)
RUN = new_id(ObjectKind.RUN)
MIB = 1 << 20


# -- the client's cache and resume files ----------------------------------------------------------------------------


def resume_file() -> bytes:
    head = (b"modelbox resume 1 " + RUN.encode()).ljust(63) + b"\n"
    return head + b"".join(struct.pack("<qQq", step, step % 2, 1_700_000_000_000_000 + step) for step in range(4))


@fuzzed
@given(data=damaged([resume_file()]))
def test_resume_files(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "run"
    path.write_bytes(data)
    try:
        resume = ResumeFile(path)
    except InvalidError:
        assert path.read_bytes() == data
        return
    assert resume.run_id is not None
    assert resume.run_id.startswith("run_")
    for step in (0, 1, 2, 3, 2**63 - 1):
        assert resume.at(step) == resume.at(step)
    # What is appended next begins where a record begins.
    assert (path.stat().st_size - 64) % 24 == 0


STATE = RefState(
    ref="ns/model@prod",
    server_id="s",
    version=version_of(manifest_of({"m.onnx": b"3"}), version=3),
    alias_mod_rev=3,
    token="t",
    previous=version_of(manifest_of({"m.onnx": b"2"}), version=2),
    quarantine=(Quarantined(digest=manifest_of({"x": b"1"}).digest, mod_rev=2, reason="broken"),),
)


@fuzzed
@given(data=st.data())
def test_states_of_the_cache(tmp_path: Path, data: st.DataObject) -> None:
    refs, scratch = tmp_path / "refs", tmp_path / "scratch"
    for directory in (refs, scratch):
        directory.mkdir(exist_ok=True)
    for left in refs.iterdir():
        left.unlink()
    save_state(refs, scratch, "key", STATE)
    (path,) = refs.iterdir()
    whole = path.read_bytes()
    assert load_state(refs, "key") == STATE
    body = whole.partition(b"\n")[2]
    odd = data.draw(st.one_of(damaged([body]), damaged_json([json.loads(body)]).map(_json), st.just(nested())))
    # Once as a torn file, once as somebody wrote it on purpose.
    sealed = f"modelbox-ref 1 {hashlib.sha256(odd).hexdigest()}\n".encode() + odd
    for written in (data.draw(damaged([whole])), sealed):
        path.unlink()
        path.write_bytes(written)
        found = load_state(refs, "key")
        assert found is None or isinstance(found, RefState)
        assert len(list(iter_states(refs))) == 1


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


# -- spools ---------------------------------------------------------------------------------------------------------

COPIED = SpooledFile(path="a/b", local="files/0123456789abcdef/a/b", size_bytes=3, mtime_ns=5, copied=True)
FILES = FilesRecord(seq=9, parent=RUN, name="weights", files=(COPIED,), labels={"a": "b"}, metadata={"n": 1})
RECORDS = [
    struct.pack("<BQI", 1, 0, 1) + RUN.encode(),
    encode_point(2, 1, 1, 5, 6, 0.5)[8:],
    encode_payload(3, 1, 1, 5, 6, 1, b"text")[8:],
    struct.pack("<BQ", 5, 4) + operation_data(NewComment(object=RUN, text="hi")),
    encode_files(FILES)[8:],
]


def framed(body: bytes) -> bytes:
    return struct.pack("<II", len(body), zlib.crc32(body)) + body


def files_record(value: Any) -> bytes:
    return struct.pack("<BQ", 6, 9) + json.dumps(value).encode()


SPOOLED = json.loads(RECORDS[-1][9:])
ODD_RECORDS = st.one_of(damaged(RECORDS), damaged_json([SPOOLED]).map(files_record))


@fuzzed
@given(st.lists(ODD_RECORDS, min_size=1, max_size=4), damaged([b"".join(framed(body) for body in RECORDS)]))
def test_records_of_a_spool(bodies: list[bytes], torn: bytes) -> None:
    for data in (framed(RECORDS[0]) + b"".join(framed(body) for body in bodies), torn):
        names: dict[int, str] = {}
        with little_memory(8 * MIB):
            decoded = decode(data, names)
            with contextlib.suppress(KeyError):  # a name that is gone, as the reader expects
                operations_of(decoded, names)
        assert decoded.size_bytes <= len(data)
        if decoded.files is not None:
            for file in decoded.files.files:
                assert not file.copied or Path("files") in Path(os.path.normpath(file.local)).parents


@fuzzed
@given(st.data())
def test_spools_that_were_left_behind(tmp_path: Path, data: st.DataObject) -> None:
    outside = tmp_path / "precious" / "deep"
    outside.mkdir(parents=True, exist_ok=True)
    directory = tmp_path / "spools" / ("0" * 32)
    (directory / "files" / "0123456789abcdef" / "a").mkdir(parents=True, exist_ok=True)
    about = {"format": 1, "spool": "0" * 32, "url": "u", "actor": "a", "host": "h", "pid": 1, "created_us": 5}
    (directory / "about.json").write_bytes(
        data.draw(st.one_of(damaged([_json(about)]), damaged_json([about]).map(_json), st.just(nested())))
    )
    assert len(find_spools(directory.parent)) < 2
    bodies = data.draw(st.lists(ODD_RECORDS, max_size=3))
    (directory / "0001.seg").write_bytes(data.draw(damaged([HEADER])) + b"".join(framed(body) for body in bodies))
    (directory / "uploads").write_bytes(HEADER + framed(data.draw(ODD_RECORDS)))
    (directory / "cursor").write_bytes(data.draw(damaged([struct.pack("<QI", 0, zlib.crc32(bytes(8)))])))
    spool = Spool(directory)
    try:
        spool.pending()
        for record in spool.uploads:
            spool.uploaded(record)
        for _ in range(6):
            batch = spool.next_batch()
            if batch is None:
                break
            spool.advance(batch)
        else:
            raise AssertionError("a spool without an end")
    finally:
        spool.close()
    assert outside.is_dir()
    assert (directory / "files").is_dir()


# -- exports --------------------------------------------------------------------------------------------------------

TABLE = TableFile(
    name="runs", database="main", file="tables/runs.jsonl", rows=1, lines=1, size_bytes=9, sha256="0" * 64,
    rows_sum="0", last_id=None, columns={"id": "integer"},
)  # fmt: skip
MANIFEST = ExportManifest(
    created_at="2026-05-03T10:00:00Z", release="1", source="sqlite", schema={"main": "0007"},
    feed=FeedPlace(server_id="s", epoch="e", rev=3, chain="00"), blobs=BlobTotals(count=0, size_bytes=0),
    tables=(TABLE,),
)  # fmt: skip


@fuzzed
@given(data=st.data())
def test_manifests_of_exports(tmp_path: Path, data: st.DataObject) -> None:
    written = write_manifest(tmp_path, MANIFEST)
    assert read_manifest(tmp_path) == written
    path = tmp_path / "manifest.json"
    raw = json.loads(path.read_bytes())
    document = data.draw(damaged_json([raw]))
    if isinstance(document, dict) and data.draw(st.booleans()):
        # By somebody who knows how the checksum is made.
        content = {key: value for key, value in document.items() if key != "checksum"}
        text = json.dumps(content, ensure_ascii=False, sort_keys=True)
        document["checksum"] = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
    path.write_bytes(data.draw(st.one_of(st.just(_json(document)), damaged([path.read_bytes()]), st.just(nested()))))
    try:
        found = read_manifest(tmp_path)
    except (IntegrityError, NotFoundError):
        return
    assert found.rows >= 0
    assert all(table.file == f"tables/{table.name}.jsonl" and "/" not in table.name for table in found.tables)


POINTS = [(7, step, 1000 + step, 0, 0.5, None) for step in range(3)] + [(7, 9, 1009, 1, None, b"text")]
COLUMNS = kinds_of_columns(feed_changes)
CHANGE = [
    5 if kind == "integer" else b"\0" if kind == "bytes" else True if kind == "boolean" else "x"
    for kind in COLUMNS.values()
]
LINES = [(metric_points, line) for _, line in write_rows(metric_points, POINTS)]
LINES += [(feed_changes, line) for _, line in write_rows(feed_changes, [CHANGE])]


def sealed(values: Any) -> bytes:
    body = json.dumps(values).encode()[:-1]
    return b'%b,"%08x"]\n' % (body, zlib.crc32(body))


@fuzzed
@given(st.data())
def test_lines_of_exports(data: st.DataObject) -> None:
    table, whole = data.draw(st.sampled_from(LINES))
    columns = kinds_of_columns(table)
    assert len(read_rows(table, columns, whole)) == count_rows(table.name, whole)
    values = json.loads(whole)[:-1]
    for line in (data.draw(damaged([whole])), sealed(data.draw(damaged_json([values])))):
        with contextlib.suppress(DamagedLine), little_memory(32 * MIB):
            count_rows(table.name, line)
        with contextlib.suppress(DamagedLine), little_memory(32 * MIB):
            read_rows(table, columns, line)


def test_a_line_that_grows_without_end_is_refused() -> None:
    values = json.loads(LINES[0][1])[:-1]
    values[2] = base64.b64encode(zlib.compress(bytes(256 * MIB), 9)).decode()
    for count in (4, 10**12):
        values[1] = count
        with little_memory(32 * MIB), contextlib.suppress(DamagedLine):
            read_rows(metric_points, kinds_of_columns(metric_points), sealed(values))
            raise AssertionError("it was read")


ENTRY = AuditEntry(
    rev=3, idx=0, at=NOW, actor="ada", namespace="ns", object="ns/m", kind="model", action="created", after={}
)


@fuzzed
@given(data=st.data())
def test_exports_of_the_audit_log(tmp_path: Path, data: st.DataObject) -> None:
    line = json.dumps(to_json(ENTRY)).encode()
    odd = data.draw(st.one_of(damaged([line]), damaged_json([json.loads(line)]).map(_json), st.just(nested())))
    path = tmp_path / "audit.jsonl"
    path.write_bytes(odd)
    with contextlib.suppress(InvalidError):
        for entry in read_export(path):
            assert entry.at.tzinfo is not None


# -- keys -----------------------------------------------------------------------------------------------------------


@fuzzed
@given(data=st.data())
def test_key_files(tmp_path: Path, data: st.DataObject) -> None:
    private = tmp_path / "key"
    if not private.exists():
        create_key(private)
    samples = [private.read_bytes(), (tmp_path / "key.pub").read_bytes()]
    path = tmp_path / "odd"
    path.write_bytes(data.draw(damaged(samples)))
    path.chmod(0o600)
    secret = samples[0].splitlines()[1].decode()
    for read in (lambda: SigningKey.load(path), Trust(keys=[TrustedFile(path=path)]).check, _roots(path)):
        try:
            read()
        except ConfigError as exc:
            said = str(exc)
        else:
            continue
        assert secret not in said


def _roots(path: Path) -> Any:
    return Trust(roots=[TrustedFile(path=path)]).check
