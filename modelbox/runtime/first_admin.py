"""The first admin's token, and the way back in for who has lost every other: ``modelbox server admin-token``.

Owns the file of the first token. It is written, for this user alone, before the account is made, so that a crash
between the two leaves a token that the next start takes; of replicas that start at once one makes the account, and the
others remove what they wrote. Once there is an account the file means nothing: delete it when it was read.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import anyio.to_thread

from modelbox.accounts import CreatedToken, TokenInfo
from modelbox.errors import ConfigError, InvalidError
from modelbox.runtime.access_ports import AccessStore, StoredToken
from modelbox.runtime.services.access import DEFAULT_TOKEN_S
from modelbox.runtime.services.callers import SERVER_ACTOR
from modelbox.tokens import Token

__all__ = ("FIRST_ADMIN", "make_first_admin", "recover_admin")

_LOG = logging.getLogger(__name__)
FIRST_ADMIN = "admin"
"""The account of the first token."""
_MAX_FILE_BYTES = 4096


async def make_first_admin(store: AccessStore, path: Path) -> bool:
    """Makes the first account, an admin everywhere, where there is none yet.

    Args:
        store: Where accounts are kept.
        path: The file with its token; made if it is not there.

    Returns:
        Whether the account was made.

    Raises:
        ConfigError: The file can be neither read nor made, or holds no token.
    """
    state = await store.load(expired_since=datetime.now(UTC))
    if state.accounts:
        return False
    token = await anyio.to_thread.run_sync(_read, path)
    ours = token is None
    if token is None:
        token = Token.new()
        if not await anyio.to_thread.run_sync(_write, path, token):
            # Another server that shares the directory was faster.
            token, ours = await anyio.to_thread.run_sync(_read, path), False
            if token is None:
                raise ConfigError(f"the first admin's token in {path} comes and goes: start again")
    made = await store.bootstrap(_stored(token, "of the first admin"), actor=SERVER_ACTOR, at=datetime.now(UTC))
    if made:
        _LOG.warning("made the account %s, an admin everywhere; its token is in %s", FIRST_ADMIN, path)
    elif ours and await store.find_token(token.kid) is None:
        # Where it is known, another server that shares the directory was faster with our file.
        await anyio.to_thread.run_sync(_remove, path)
    return made


async def recover_admin(store: AccessStore) -> CreatedToken:
    """Makes another token of an admin everywhere, and the account if it is gone; asks nobody."""
    token = Token.new()
    info = await store.recover(
        _stored(token, "made with modelbox server admin-token"), actor=SERVER_ACTOR, at=datetime.now(UTC)
    )
    return CreatedToken(token=token.reveal(), info=info)


def _stored(token: Token, description: str) -> StoredToken:
    now = datetime.now(UTC)
    info = TokenInfo(
        id=token.kid,
        account=FIRST_ADMIN,
        description=description,
        created_at=now,
        created_by=SERVER_ACTOR,
        expires_at=now + timedelta(seconds=DEFAULT_TOKEN_S),
        mod_rev=0,
    )
    return StoredToken(digest=token.digest, info=info)


def _read(path: Path) -> Token | None:
    try:
        with path.open(encoding="utf-8") as file:
            text = file.read(_MAX_FILE_BYTES)
    except FileNotFoundError:
        return None
    except (OSError, UnicodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigError(f"cannot read the first admin's token in {path}: {why}") from exc
    try:
        return Token.parse(text.strip())
    except InvalidError as exc:
        raise ConfigError(f"{path} holds no token for the first admin: {exc}; or delete it, and one is made") from exc


def _write(path: Path, token: Token) -> bool:
    """Writes a new file, whole and for this user alone; False if there is one already."""
    temporary = path.with_name(f".{path.name}.{token.kid}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            with open(fd, "w", encoding="utf-8") as file:
                file.write(f"{token.reveal()}\n")
                file.flush()
                os.fsync(file.fileno())
            os.link(temporary, path)
        finally:
            os.unlink(temporary)
    except FileExistsError:
        return False
    except OSError as exc:
        raise ConfigError(f"cannot write the first admin's token to {path}: {exc.strerror}") from exc
    return True


def _remove(path: Path) -> None:
    with suppress(OSError):
        path.unlink()
