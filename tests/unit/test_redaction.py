"""What is hidden in texts, and that it is hidden wherever texts come out."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import textwrap

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from modelbox import otel
from modelbox._wire import pack_error
from modelbox.errors import InvalidError, StorageError
from modelbox.redaction import RedactingFormatter, keep_secret, keep_secrets_of, redact, redact_command, redact_value
from modelbox.refs import ModelRef
from tests.faults.registry import fault

SECRET = "mbx_k7_" + "Zx9" * 14 + "_0a1b2c"


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("train.py --password hunter2 --lr 0.1", "train.py --password *** --lr 0.1"),
        ("train.py --api-key=hunter2", "train.py --api-key=***"),
        ("train.py HF_TOKEN=hunter2 x=1", "train.py HF_TOKEN=*** x=1"),
        ("train.py db.auth.secret=hunter2", "train.py db.auth.secret=***"),
        ("train.py --awsSecretAccessKey hunter2", "train.py --awsSecretAccessKey ***"),
        ("train.py --hf-token hunter2 --pad-token 0", "train.py --hf-token *** --pad-token 0"),
        ("train.py --max-tokens 5 --tokenizer bert --key name", "train.py --max-tokens 5 --tokenizer bert --key name"),
        ("train.py --use-auth --epochs 3", "train.py --use-auth --epochs 3"),
        ("train.py s3://ann:hunter2@host/x", "train.py 's3://ann:***@host/x'"),
        ("train.py --password", "train.py --password"),
        ("train.py --patience 3 --path /x", "train.py --patience 3 --path /x"),
    ],
)
def test_command_lines(command: str, shown: str) -> None:
    assert redact_command(command.split()) == shown


@pytest.mark.parametrize(
    "secret",
    [
        "AKIAABCDEFGHIJKLMNOP",
        "ghp_" + "a1" * 18,
        "hf_" + "aB3" * 11,
        "sk-proj-" + "a1" * 20,
        "mbx_k1_" + "aB3" * 14 + "_1a2b3c",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
        "-----BEGIN RSA PRIVATE KEY-----\nMIIabc\nMIIdef\n-----END RSA PRIVATE KEY-----",
    ],
)
def test_what_looks_like_a_secret_is_hidden(secret: str) -> None:
    text = redact(f"before {secret} after")
    assert secret not in text
    assert "MII" not in text
    assert text.startswith("before ")
    assert text.endswith(" after")


def test_ordinary_code_is_left_alone() -> None:
    code = textwrap.dedent("""
        token = tokenizer.pad_token  # sk-learn
        key = jax.random.PRNGKey(0)
        url = "https://example.com/a@b"
    """)
    assert redact(code, names=False) == code


@fault(70)
@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://box:hunter2@db:5432/box is away", "postgresql://box:***@db:5432/box is away"),
        (f"token {SECRET} refused", "token mbx_k7_*** refused"),
        ("authorization: Bearer abcdefgh.ijkl", "authorization: Bearer ***"),
        (
            "GET https://s3/b/k?X-Amz-Credential=AK%2F2026&X-Amz-Expires=300&X-Amz-Signature=0f0f failed",
            "GET https://s3/b/k?X-Amz-Credential=***&X-Amz-Expires=300&X-Amz-Signature=*** failed",
        ),
        ("host=db password=hunter2 dbname=box", "host=db password=*** dbname=box"),
        ("""{"user": "ann", "secret": "hunter2"}""", """{"user": "ann", "secret": "***"}"""),
        ("page_token_size=5 pad_token=0 version=7", "page_token_size=5 pad_token=0 version=7"),
        ("langtech/wav2vec@prod sha256:" + "ab" * 32, "langtech/wav2vec@prod sha256:" + "ab" * 32),
    ],
)
def test_texts(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_what_is_known_to_be_secret_is_hidden_as_it_is_and_quoted() -> None:
    keep_secret("p/w+d 1é-known")
    assert redact("a p/w+d 1é-known b p%2Fw%2Bd%201%C3%A9-known c") == "a *** b *** c"


def test_a_word_is_not_hidden_although_somebody_took_it_as_a_password() -> None:
    keep_secret("modelbox")
    keep_secret("db1")
    assert redact("modelbox reads db1") == "modelbox reads db1"


def test_variables_are_known_by_their_names() -> None:
    keep_secrets_of(
        {"AWS_SECRET_ACCESS_KEY": "env-1-secret", "MODELBOX_TOKEN_FILE": "/run/no-secret-1", "HOME": "/h0me"}
    )
    assert redact("env-1-secret /run/no-secret-1 /h0me") == "*** /run/no-secret-1 /h0me"


@fault(70)
@given(st.text(max_size=300))
def test_any_text_is_taken_and_nothing_is_left_of_a_secret_in_it(text: str) -> None:
    assert SECRET.rpartition("_")[0] not in redact(f"{text} {SECRET} {text}")
    assert redact(redact(text)) == redact(text)


def test_values_of_json_keep_their_form() -> None:
    value = {"a": [1, True, None, SECRET], "b": {"c": 2.5}}
    assert redact_value(value) == {"a": [1, True, None, "mbx_k7_***"], "b": {"c": 2.5}}


@fault(70)
def test_errors_travel_without() -> None:
    error = InvalidError(f"no such thing: {SECRET}", given={"text": [SECRET]})
    assert SECRET not in json.dumps(error.to_dict())
    assert SECRET.encode() not in pack_error(error)
    assert json.loads(pack_error(error))["fields"] == {"given": {"text": ["mbx_k7_***"]}}


def test_logs_are_written_without_tracebacks_included() -> None:
    try:
        raise StorageError(f"failed with {SECRET}")
    except StorageError as exc:
        record = logging.LogRecord(
            "x", logging.ERROR, "f", 1, "call with %s", (SECRET,), (type(exc), exc, exc.__traceback__)
        )
    text = RedactingFormatter("%(message)s").format(record)
    assert "StorageError" in text
    assert SECRET not in text
    assert text.count("mbx_k7_***") == 2


def test_what_ends_a_program_or_a_thread_is_printed_without() -> None:
    code = f"""
        import threading
        from modelbox.redaction import redact_uncaught
        redact_uncaught()
        def fail():
            raise ValueError("{SECRET}")
        thread = threading.Thread(target=fail)
        thread.start()
        thread.join()
        fail()
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.count("ValueError: mbx_k7_***") == 2
    assert "Zx9Zx9" not in done.stderr.replace(f'ValueError("{SECRET}")', "")


@fault(70)
def test_spans_record_failures_without() -> None:
    spans = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(spans))
    tracer = provider.get_tracer("test")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("opentelemetry.trace.get_tracer", lambda *_: tracer)
        with pytest.raises(StorageError), otel.predict_span(ModelRef.parse("a/b@prod")):
            raise StorageError(f"failed with {SECRET}")
    (span,) = spans.get_finished_spans()
    assert SECRET not in span.to_json()
    assert "mbx_k7_***" in span.to_json()
    assert not span.status.is_ok
