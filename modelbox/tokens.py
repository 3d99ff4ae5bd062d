"""The text of an access token: how it is made, read, and told from a typing error.

``mbx_<kid>_<secret>_<checksum>``: the prefix and the checksum let scanners of secrets find one in a file, and let a
server refuse a mistyped one without a look at anything. ``kid`` is public: lists, logs and history name the token by
it. The secret is 32 random bytes; whoever keeps tokens keeps `Token.digest` and nothing else of it.

Invariants: a token parses back to itself; no two texts are one token; the secret is in no ``repr``.
"""

from __future__ import annotations

import hashlib
import re
import secrets
import zlib
from dataclasses import dataclass, field

from modelbox.errors import InvalidError

__all__ = ("PREFIX", "Token", "check_kid", "is_token")

PREFIX = "mbx_"
"""How every token begins."""

_DIGITS = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_KID_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"
_KID_CHARS = 12
_SECRET_BYTES = 32
_SECRET_CHARS = 43
_CHECKSUM_CHARS = 6
_KID = re.compile(rf"[0-9a-z]{{{_KID_CHARS}}}")
_TOKEN = re.compile(
    rf"mbx_([0-9a-z]{{{_KID_CHARS}}})_([0-9A-Za-z]{{{_SECRET_CHARS}}})_([0-9A-Za-z]{{{_CHECKSUM_CHARS}}})"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """A token that has the right form; whether anybody gave it out is for a server to say.

    Attributes:
        kid: Its public part.
        secret: The text that only its owner knows.
    """

    kid: str
    secret: str = field(repr=False)

    @classmethod
    def new(cls) -> Token:
        """A token that nobody can guess."""
        kid = "".join(secrets.choice(_KID_DIGITS) for _ in range(_KID_CHARS))
        return cls(kid=kid, secret=_base62(int.from_bytes(secrets.token_bytes(_SECRET_BYTES), "big"), _SECRET_CHARS))

    @classmethod
    def parse(cls, text: str) -> Token:
        """Reads a token.

        Raises:
            InvalidError: It is none, or was not copied as a whole; the text of the error holds nothing of it.
        """
        found = _TOKEN.fullmatch(text) if isinstance(text, str) else None
        if found is None:
            raise InvalidError("that is not an access token: expected mbx_, and all that follows", what="token")
        token = cls(kid=found[1], secret=found[2])
        if token.reveal() != text:
            raise InvalidError("the access token's checksum is wrong: copy the whole token again", what="token")
        return token

    @property
    def digest(self) -> bytes:
        """SHA-256 of the secret, which is long and random enough for a quick hash."""
        return hashlib.sha256(self.secret.encode()).digest()

    def reveal(self) -> str:
        """The whole text, secret included."""
        body = f"{PREFIX}{self.kid}_{self.secret}"
        return f"{body}_{_base62(zlib.crc32(body.encode()), _CHECKSUM_CHARS)}"

    def __str__(self) -> str:
        return f"{PREFIX}{self.kid}_…"


def is_token(text: str) -> bool:
    """Whether ``text`` is a token with the right checksum."""
    try:
        Token.parse(text)
    except InvalidError:
        return False
    return True


def check_kid(text: str) -> str:
    """Returns ``text`` if it may be a token's public part.

    Raises:
        InvalidError: It cannot be; a whole token is taken for one by nobody, and is not repeated.
    """
    if not isinstance(text, str) or not _KID.fullmatch(text):
        raise InvalidError(
            f"that is not the id of a token: expected {_KID_CHARS} of a-z and 0-9, as tokens list shows",
            what="token id",
        )
    return text


def _base62(number: int, chars: int) -> str:
    text = ""
    while number:
        number, digit = divmod(number, 62)
        text = _DIGITS[digit] + text
    return text.rjust(chars, "0")
