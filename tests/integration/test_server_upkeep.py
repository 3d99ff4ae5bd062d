"""``modelbox server check`` and ``modelbox server migrate`` on every database."""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

from modelbox.cli import main
from modelbox.runtime.store.migrate import HEAD, METRICS
from tests.cli import Cli
from tests.server import ServerProcess
from tests.servers.mariadb import MariadbServer
from tests.servers.postgres import PostgresServer


class UpkeepCli(Cli):
    """The command line, and how it is printed what `modelbox server check` finds."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        super().__init__(capsys)
        self.capsys = capsys

    def check(self, *argv: str, code: int = 0) -> str:
        """What is printed, with whatever exit code."""
        assert main(["server", "check", *argv]) == code, self.capsys.readouterr()
        captured = self.capsys.readouterr()
        assert captured.err == ""
        return captured.out

    def report(self, *argv: str, code: int = 0) -> Any:
        """The same for programs."""
        return json.loads(self.check(*argv, "--output", "json", code=code))


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> UpkeepCli:
    """The command line, which knows no server."""
    for name in [name for name in os.environ if name.startswith("MODELBOX_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MODELBOX_DATA_DIR", str(tmp_path / "data"))
    return UpkeepCli(capsys)


@pytest.fixture(params=["sqlite", "postgres", "mariadb"])
def database(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    if request.param != "sqlite":
        monkeypatch.setenv("MODELBOX_DATABASE_URL", request.getfixturevalue(f"{request.param}_url"))
    return str(request.param)


def _states(report: dict[str, Any]) -> dict[str, str]:
    return {finding["check"]: finding["state"] for finding in report["findings"]}


def _detail(report: dict[str, Any], check: str) -> str:
    return next(str(finding["detail"]) for finding in report["findings"] if finding["check"] == check)


def test_forth_and_back(cli: UpkeepCli, database: str) -> None:
    newest = f"main tables: nothing -> {HEAD}\ntables of metrics: nothing -> {METRICS.head}\n"
    assert cli("server", "migrate") == newest
    again = cli.json("server", "migrate")
    assert [(one["before"], one["after"]) for one in again] == [(HEAD, HEAD), (METRICS.head, METRICS.head)]
    assert "what that cannot hold is lost" in cli("server", "migrate", "--to", "0003", code=2)
    assert f"main tables: {HEAD} -> 0003\n" in cli("server", "migrate", "--to", "0003", "--force")
    assert "no schema '12'" in cli("server", "migrate", "--to", "12", code=2)
    assert f"main tables: 0003 -> {HEAD}\n" in cli("server", "migrate")


def test_what_is_well_and_what_is_old(cli: UpkeepCli, database: str, tmp_path: Path) -> None:
    if database == "sqlite":
        assert _states(cli.report())["database"] == "warning"
    else:
        lossy = {"postgres": ("durability", "fsync = off"), "mariadb": ("durability", "trx_commit = 2")}
        check, why = lossy[database]
        report = cli.report(code=1)
        assert why in _detail(report, check)
        assert _states(report)["schema"] == "warning"
    (tmp_path / "data").mkdir(mode=0o700, exist_ok=True)
    cli("server", "migrate")
    code = 0 if database == "sqlite" else 1
    report = cli.report(code=code)
    states = _states(report)
    assert states.pop("durability", "failed") == "failed"
    states.pop("connections", None)
    expected = {"database", "schema", "schema of metrics", "files"}
    expected |= set() if database == "sqlite" else {"feed", "clock", "writes"}
    assert states == dict.fromkeys(expected, "ok")
    assert _detail(report, "schema") == f"{HEAD}, the newest"
    table = cli.check(code=code)
    assert "CHECK" in table
    assert not [line for line in table.splitlines() if "p%40ss" in line or "pw-" in line]
    cli("server", "migrate", "--to", "0003", "--force")
    report = cli.report(code=code)
    assert _detail(report, "schema") == f"0003: a start or server migrate brings it to {HEAD}"


def test_a_database_that_is_away_or_refuses_is_a_finding(
    cli: UpkeepCli, mariadb_server: MariadbServer, postgres_server: PostgresServer
) -> None:
    for url, why in (
        (mariadb_server.url("none"), "Unknown database 'none'"),
        (mariadb_server.url("mysql", password="wrong"), "Access denied"),
        (mariadb_server.url("mysql", port=1), "does not answer"),
        (postgres_server.url("none"), '"none" does not exist'),
        (postgres_server.url("postgres", password="wrong"), "password authentication failed"),
        (postgres_server.url("postgres", port=1), "does not answer"),
    ):
        report = cli.report("--database-url", url, code=1)
        assert _states(report)["database"] == "failed"
        assert why in _detail(report, "database")
        printed = json.dumps(report)
        assert mariadb_server.password not in printed
        assert "wrong" not in printed


def test_a_user_with_few_rights(cli: UpkeepCli, mariadb_server: MariadbServer, postgres_server: PostgresServer) -> None:
    url = mariadb_server.new_database(migrated=True)
    name = url.rpartition("/")[2]
    mariadb_server.execute(
        "CREATE OR REPLACE USER few IDENTIFIED BY 'few'",
        f"GRANT SELECT, INSERT, UPDATE ON `{name}`.* TO few",
    )
    report = cli.report("--database-url", mariadb_server.url(name, user="few", password="few"), code=1)
    assert "DELETE command denied" in _detail(report, "writes")
    assert "ALTER, CREATE, DROP, INDEX, REFERENCES" in _detail(report, "schema changes")
    mariadb_server.drop_database(url)

    url = postgres_server.new_database(migrated=True)
    name = url.rpartition("/")[2]
    postgres_server.execute("DROP ROLE IF EXISTS few")
    postgres_server.execute("CREATE ROLE few LOGIN PASSWORD 'few'")
    for rights in ("SELECT, INSERT, UPDATE ON ALL TABLES IN SCHEMA public", "USAGE ON ALL SEQUENCES IN SCHEMA public"):
        postgres_server.execute(f"GRANT {rights} TO few", url=url)
    few = postgres_server.url(name, password="few").replace("//modelbox:", "//few:")
    report = cli.report("--database-url", few, code=1)
    assert "permission denied for table" in _detail(report, "writes")
    assert "CREATE on its schema" in _detail(report, "schema changes")
    postgres_server.drop_database(url)
    postgres_server.execute("DROP ROLE few")


def test_settings_that_lose_changes_and_servers_that_take_none(cli: UpkeepCli) -> None:
    options = ["--innodb-flush-log-at-trx-commit=0", "--innodb-doublewrite=0", "--max-connections=12"]
    with MariadbServer(options=options) as server:
        url = server.new_database(migrated=True)
        report = cli.report("--database-url", url, code=1)
        details = [finding["detail"] for finding in report["findings"] if finding["check"] == "durability"]
        assert [detail.partition(":")[0] for detail in details] == [
            "innodb_flush_log_at_trx_commit = 0",
            "innodb_doublewrite = OFF",
        ]
        assert _states(report)["connections"] == "warning"
        server.execute("ALTER TABLE quotas ENGINE=MyISAM", "ALTER TABLE blobs COLLATE utf8mb4_general_ci", url=url)
        server.execute(
            "CREATE USER one IDENTIFIED BY 'one'",
            "GRANT ALL ON *.* TO one",
            "REVOKE SUPER, READ_ONLY ADMIN ON *.* FROM one",
            "SET GLOBAL read_only=1",
        )
        one = server.url(url.rpartition("/")[2], user="one", password="one")
        report = cli.report("--database-url", one, code=1)
        assert "takes no changes" in _detail(report, "writes")
        assert "table quotas is kept by MyISAM" in _detail(report, "engine")
        assert "table blobs compares texts by utf8mb4_general_ci" in _detail(report, "collation")


def test_a_store_of_files_that_cannot_be_written(cli: UpkeepCli, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    report = cli.report("--blobs-url", f"file://{tmp_path}/file/below", code=1)
    assert _states(report)["files"] == "failed"


@pytest.mark.parametrize("kind", ["postgres", "mariadb"])
def test_servers_that_start_at_once_make_the_tables_once(
    kind: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    url: str = request.getfixturevalue(f"{kind}_url")
    servers = [
        ServerProcess(tmp_path / "data", env={"MODELBOX_DATABASE_URL": url}, replica_name=f"r{number}")
        for number in range(2)
    ]
    try:
        for server in servers:
            server.spawn()
        for server in servers:
            server.wait_for(r"modelbox ready", timeout=60)
        assert request.getfixturevalue(f"{kind}_server").fetch("SELECT count(*) FROM feed_head", url=url) == [(1,)]
        assert [server.terminate() for server in servers] == [0, 0]
        for server in servers:
            assert "Traceback" not in server.output
            assert not re.search(r"WARNING|ERROR", server.output)
    finally:
        for server in servers:
            server.close()
