"""A program whose token was narrowed while its records waited: they arrive once it may write there again."""

from __future__ import annotations

from pathlib import Path

import pytest

from modelbox.spool.log import SpoolLog
from modelbox.spool.operations import operation_data
from modelbox.sync import Client
from modelbox.tracking import NewComment
from tests.cli import Cli
from tests.faults.registry import fault
from tests.server import ServerProcess


@fault(68)
def test_what_a_narrowed_token_could_not_deliver_is_kept_until_it_can(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli = Cli(capsys)
    file = tmp_path / "weights.bin"
    file.write_bytes(b"weights")
    with ServerProcess(tmp_path / "data", access="on") as server:
        root = (server.data_dir / "admin-token").read_text().strip()
        with Client(server.url, token=root) as admin:
            admin.create_account("trainer")
            for namespace in ("left", "right"):
                admin.grant_role("trainer", "writer", namespace=namespace)
            token = admin.create_token("trainer").token
            run = admin.create_run("left/speech").item.id

            spool = tmp_path / "spool"
            log = SpoolLog(spool, url=server.url, actor="trainer", max_bytes=1 << 24)
            log.append_operation(operation_data(NewComment(object=run, text="it goes well")))
            log.append_point(run, "loss", 1, 5, 0.5)
            log.append_files(run, "weights", file, labels={}, metadata={})
            log.abandon()
            admin.revoke_role("trainer", namespace="left")

            for key, value in {"URL": server.url, "TOKEN": token, "SPOOL_DIR": str(spool)}.items():
                monkeypatch.setenv(f"MODELBOX_{key}", value)
            told = cli.json("spool", "push")
            assert [(one["error"], len(one["refused"])) for one in told] == [(None, 3)]
            assert all(one["kept"] for one in told[0]["refused"])
            kept = cli.json("spool", "status")
            assert [(one["refused"], one["owned"]) for one in kept] == [(True, False)] * 2
            assert sum(one["records"] for one in kept) == 3
            assert "refused" in cli("spool", "status")
            assert list(admin.iter_comments(run)) == []

            admin.grant_role("trainer", "writer", namespace="left")
            assert [one["refused"] for one in cli.json("spool", "push")] == [[], []]
            assert cli.json("spool", "status") == []
            (comment,) = admin.iter_comments(run)
            assert (comment.text, comment.created_by) == ("it goes well", "trainer")
            assert [one.name for one in admin.iter_artifacts(run)] == ["weights"]
            (summary,) = admin.metric_summaries(run)
            assert (summary.key, summary.latest) == ("loss", 0.5)
