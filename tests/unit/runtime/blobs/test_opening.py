"""Which store of files the settings mean."""

from __future__ import annotations

import builtins
from pathlib import Path
from typing import Any

import pytest

from modelbox.errors import ConfigError
from modelbox.runtime.blobs.filesystem import FilesystemBlobs
from modelbox.runtime.blobs.opening import S3Options, open_blobs
from modelbox.runtime.blobs.s3 import S3Blobs
from modelbox.runtime.config import load_server_config


@pytest.mark.parametrize("url", ["", "file:///srv/files", "file://localhost/srv/files%20here"])
def test_directories(url: str, tmp_path: Path) -> None:
    assert isinstance(open_blobs(url, data_dir=tmp_path), FilesystemBlobs)


@pytest.mark.parametrize(
    ("url", "place"),
    [("s3://models", "s3://models/"), ("s3://models/", "s3://models/"), ("s3://models/a/b/", "s3://models/a/b/")],
)
def test_buckets(url: str, place: str, tmp_path: Path) -> None:
    blobs = open_blobs(url, data_dir=tmp_path, s3=S3Options(endpoint="http://127.0.0.1:1"))
    assert isinstance(blobs, S3Blobs)
    assert str(blobs.address) == f"{place} at http://127.0.0.1:1"


@pytest.mark.parametrize(
    "url",
    [
        "models",
        "/srv/files",
        "s3:",
        "s3:///models",
        "s3://key:secretsecret@models",
        "s3://models?region=x",
        "s3://models#x",
        "s3://models/a//b",
        "s3://models/../b",
        "s3://models/ü",
        "file://elsewhere/srv",
        "file:srv",
        "http://models",
        "s3://[models",
    ],
)
def test_what_is_no_address(url: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="blobs_url") as caught:
        open_blobs(url, data_dir=tmp_path)
    assert "secretsecret" not in str(caught.value)


def test_the_package_that_is_missing_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def missing(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("modelbox.runtime.blobs.s3"):
            raise ModuleNotFoundError("No module named 'aiobotocore'", name="aiobotocore")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(ConfigError, match=r"modelbox\[s3\]"):
        open_blobs("s3://models", data_dir=tmp_path)


@pytest.mark.parametrize(
    "endpoint",
    ["localhost:9000", "ftp://x", "http://", "http://key:secret@x", "http://x/path", "http://x?y", "http://x:0"],
)
def test_endpoints_that_are_none(endpoint: str) -> None:
    with pytest.raises(ConfigError, match="s3-endpoint") as caught:
        load_server_config(flags={"blobs_url": "s3://models", "s3_endpoint": endpoint}, env={})
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["s3_endpoint", "s3_public_endpoint", "s3_presign"])
def test_settings_of_s3_without_s3(key: str) -> None:
    value: object = True if key == "s3_presign" else "http://127.0.0.1:9000"
    with pytest.raises(ConfigError, match=f"{key} is set, and blobs_url is no s3:// address"):
        load_server_config(flags={key: value}, env={})
    assert load_server_config(flags={key: value, "blobs_url": "s3://models"}, env={}).blobs_url == "s3://models"
