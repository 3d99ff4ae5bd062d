"""Logging of a serving program: to stderr, a line each, without secrets and without the chatter of libraries."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence

from modelbox.redaction import RedactingFormatter, keep_secrets_of, redact_uncaught

__all__ = ("set_up_logging",)

_CHATTY = ("aiobotocore", "aiohttp", "aiosqlite", "asyncio", "botocore", "grpclib", "hpack")
"""They log every event of a connection, every lost peer, or every statement and request with all that is in it."""


def set_up_logging(level: str, *, chatty: Sequence[str] = ()) -> None:
    """Sends what is logged to stderr, and exceptions that nobody catches.

    Args:
        level: The least severity, as in the settings.
        chatty: More loggers of which only warnings are of interest.
    """
    keep_secrets_of(os.environ)
    logging.getLogger("aiohttp.server").addFilter(_is_our_mistake)
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(RedactingFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[handler])
    for name in (*_CHATTY, *chatty):
        logging.getLogger(name).setLevel(max(logging.WARNING, logging.getLogger().level))
    redact_uncaught()


def _is_our_mistake(record: logging.LogRecord) -> bool:
    """Whether a record is not about bytes of a peer that are no HTTP: anybody could fill the log with those."""
    error = record.exc_info[1] if record.exc_info else None
    return error is None or not type(error).__module__.startswith("aiohttp.http_exceptions")
