"""Secrets out of texts: the one place that decides what is hidden in logs, errors, traces and captured environments.

Three ways in, and each hides by itself: what the program knows to be secret (`keep_secret`) is hidden wherever it
stands; what has the shape of a secret is, such as a token of ours or the password of an address; and so is the value
beside a name that means one, such as ``password=``.

A shape can be missed, so nobody may rely on it alone: secrets do not belong into texts. This is the net below.
"""

from __future__ import annotations

import logging
import re
import shlex
import sys
import threading
import traceback
from collections.abc import Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import Any
from urllib.parse import quote

__all__ = (
    "RedactingFormatter",
    "keep_secret",
    "keep_secrets_of",
    "redact",
    "redact_command",
    "redact_uncaught",
    "redact_value",
)

_HIDDEN = "***"
_MIN_SECRET_CHARS = 6
_MAX_WORD_CHARS = 16

# What stands before "key" or "token" decides: an API key is a secret, a padding token is a word of a vocabulary.
_SECRET_WORDS = frozenset(
    [
        "accesskey",
        "apikey",
        "auth",
        "authorization",
        "authtoken",
        "bearer",
        "cred",
        "credential",
        "credentials",
        "creds",
        "passphrase",
        "passwd",
        "password",
        "pat",
        "privatekey",
        "psk",
        "pwd",
        "secret",
        "secretkey",
        "secrets",
    ]
)
_KEY_WORDS = frozenset(["access", "account", "api", "auth", "encryption", "private", "secret", "shared", "signing"])
_PLAIN_TOKENS = frozenset(
    [
        "bos",
        "cls",
        "end",
        "eos",
        "image",
        "line",
        "mask",
        "new",
        "next",
        "pad",
        "page",
        "resume",
        "sep",
        "special",
        "start",
        "stop",
        "unk",
    ]
)
_WORDS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


@cache
def _shapes() -> re.Pattern[str]:
    return re.compile(
        r"""(?P<url>://[^/@\s:'"]*:)[^/@\s'"]+(?=@)        # the password of an address
        | (?P<own>\bmbx_[0-9A-Za-z]{1,32}_)[0-9A-Za-z_]{8,}  # of ours; what tells which one it is may be seen
        | (?P<bearer>\b(?:Bearer|Basic)[ ]+)[\w.~+/=-]{8,}
        | (?P<amz>\b(?:X-Amz-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature)=)[^&\s'"]+
        | \b(?:AKIA|ASIA)[0-9A-Z]{16}\b                      # AWS
        | \bgh[pousr]_[0-9A-Za-z]{20,}\b | \bgithub_pat_\w{20,}\b
        | \bglpat-[\w-]{20,}
        | \bhf_[0-9A-Za-z]{20,}\b
        | \bsk-[\w-]{20,}
        | \bxox[abprs]-[\w-]{10,}
        | \bAIza[\w-]{35}\b
        | \beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]*                # JSON web tokens
        | (?P<pem>-----BEGIN[ ][A-Z ]*PRIVATE[ ]KEY-----)(?s:.*?)(?=-----END|\Z)
        """,
        re.VERBOSE,
    )


_NAMED = re.compile(
    r"""(?P<before>(?P<name>\b[A-Za-z][\w.-]{0,60})(?:=["']?|["']:[ ]?["']))(?P<value>[^\s&;,"'(){}\[\]]+)"""
)

_KNOWN: frozenset[str] = frozenset()
_known_pattern: re.Pattern[str] | None = None
_lock = threading.Lock()


def keep_secret(value: str) -> None:
    """Has ``value`` hidden from now on wherever it stands, as it is or as part of an address.

    What is short or a mere word of letters is not: it would hide parts of ordinary sentences.
    """
    global _KNOWN, _known_pattern
    if len(value) < _MIN_SECRET_CHARS or (value.isalpha() and len(value) <= _MAX_WORD_CHARS):
        return
    with _lock:
        _KNOWN |= {value, quote(value, safe=""), quote(value)}
        _known_pattern = re.compile("|".join(re.escape(one) for one in sorted(_KNOWN, key=len, reverse=True)))


def keep_secrets_of(environment: Mapping[str, str]) -> None:
    """`keep_secret` for every variable whose name means a secret, such as ``PGPASSWORD``; not for paths, as of PWD."""
    for name, value in environment.items():
        if _means_secret(name) and not value.startswith(("/", "~", ".")):
            keep_secret(value)


def redact(text: str, *, names: bool = True) -> str:
    """``text`` without what is known to be a secret, or looks like one.

    Args:
        text: Any length.
        names: Also what stands beside a name that means a secret, as in ``password=``; not for program code, where
            ``token=next`` is no secret.
    """
    if _known_pattern is not None:
        text = _known_pattern.sub(_HIDDEN, text)
    text = _shapes().sub(_hide_shape, text)
    return _NAMED.sub(_hide_named, text) if names else text


def _hide_shape(match: re.Match[str]) -> str:
    kept = match["url"] or match["own"] or match["bearer"] or match["amz"] or match["pem"] or ""
    return f"{kept}{_HIDDEN}"


def _hide_named(match: re.Match[str]) -> str:
    return f"{match['before']}{_HIDDEN}" if _means_secret(match["name"]) else match[0]


def redact_value(value: Any) -> Any:
    """`redact` for every text in a value of JSON."""
    if isinstance(value, str):
        return redact(value)
    if isinstance(value, Mapping):
        return {key: redact_value(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [redact_value(inner) for inner in value]
    return value


def redact_command(arguments: Sequence[str]) -> str:
    """A command line without the values of options and variables whose names mean a secret.

    ``--password X``, ``--api-key=X``, ``HF_TOKEN=X`` and ``hydra.auth.secret=X`` lose their X; ``--pad-token X`` and
    ``--max-tokens X`` keep it. Arguments are quoted as a shell wants them.
    """
    shown: list[str] = []
    hide_next = False
    for argument in arguments:
        name, equals, value = argument.partition("=")
        if hide_next and not argument.startswith("--"):
            shown.append(_HIDDEN)
            hide_next = False
            continue
        hide_next = False
        if equals and value and _means_secret(name):
            shown.append(f"{name}={_HIDDEN}")
            continue
        hide_next = argument.startswith("-") and not equals and _means_secret(name)
        shown.append(shlex.quote(redact(argument, names=False)))
    return " ".join(shown)


class RedactingFormatter(logging.Formatter):
    """Formats log records, tracebacks included, without secrets."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter.format`."""
        return redact(super().format(record))


def redact_uncaught() -> None:
    """Has exceptions that end the program, or a thread of it, printed without secrets."""

    def show(kind: type[BaseException], error: BaseException | None, trace: TracebackType | None) -> None:
        sys.stderr.write(redact("".join(traceback.format_exception(kind, error, trace))))

    def show_of_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_type is not SystemExit:
            sys.stderr.write(f"in thread {args.thread.name if args.thread else '?'}:\n")
            show(args.exc_type, args.exc_value, args.exc_traceback)

    sys.excepthook = show
    threading.excepthook = show_of_thread


def _means_secret(name: str) -> bool:
    words = [word.lower() for word in _WORDS.findall(name)]
    if any(word in _SECRET_WORDS for word in words):
        return True
    for before, word in zip(["", *words], words, strict=False):
        if word == "key" and before in _KEY_WORDS:
            return True
        if word == "token" and before not in _PLAIN_TOKENS:
            return True
    return False
