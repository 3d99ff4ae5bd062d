"""What a server knows of callers at one moment, and what their credentials are worth by it. In memory, without I/O.

Owns the reading of credentials, the look-up of who they are, and the count of bad ones by address. Invariants:

* A book never changes; there is a new one after each change of accounts, roles or tokens.
* For a token that nobody has, as much is hashed and compared as for one that somebody has.
* Nothing here keeps, shows or logs a secret: of a token only its public part and its hash.
"""

from __future__ import annotations

import hmac
import ipaddress
import math
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType

from modelbox.access import Caller, Grant
from modelbox.accounts import narrowed
from modelbox.errors import InvalidError, NotAuthenticated
from modelbox.runtime.access_ports import AccessState
from modelbox.tokens import Token

__all__ = ("EMPTY_BOOK", "SKEW_S", "AccessBook", "Credentials", "FailureCount", "KnownToken", "read_credentials")

SKEW_S = 60.0
"""How far clocks of servers may be apart: a token holds for so long after it has expired by this one's."""

_MAX_HEADER_CHARS = 512
_NO_DIGEST = bytes(32)
_NOT_KNOWN = (
    "this token is not known: it was revoked, expired long ago, or belongs to another server (modelbox tokens create "
    "makes one)"
)


class Credentials:
    """What came with the headers of a connection or call, read once; compared and printed by what is public in it.

    Attributes:
        kid: The public part of the token; empty where there is none.
        digest: SHA-256 of its secret.
        declared: The name that the caller says of itself.
        address: Where it comes from.
        certificate_names: Those of its certificate, which the handshake has verified.
        wrong: Why it cannot be read.
    """

    __slots__ = ("_book", "_caller", "_until", "address", "certificate_names", "declared", "digest", "kid", "wrong")

    def __init__(
        self,
        *,
        kid: str = "",
        digest: bytes = _NO_DIGEST,
        declared: str = "",
        address: str = "",
        certificate_names: tuple[str, ...] = (),
        wrong: str = "",
    ) -> None:
        self.kid = kid
        self.digest = digest
        self.declared = declared
        self.address = address
        self.certificate_names = certificate_names
        self.wrong = wrong
        self._book: AccessBook | None = None
        self._caller: Caller | None = None
        self._until = -math.inf

    def __repr__(self) -> str:
        return f"Credentials(kid={self.kid!r}, address={self.address!r}, certificate_names={self.certificate_names!r})"


def read_credentials(
    authorization: str, *, declared: str, address: str, certificate_names: tuple[str, ...]
) -> Credentials:
    """Credentials out of an ``authorization`` header and a certificate; the header counts if there is one.

    Hashes the secret, whether or not anybody has such a token.
    """
    if not authorization:
        return Credentials(declared=declared, address=address, certificate_names=certificate_names)
    scheme, _, text = authorization[:_MAX_HEADER_CHARS].partition(" ")
    if scheme.lower() != "bearer":
        return Credentials(
            declared=declared, address=address, wrong="the authorization header is no token: expected Bearer mbx_..."
        )
    try:
        token = Token.parse(text.strip(" "))
    except InvalidError as exc:
        return Credentials(declared=declared, address=address, wrong=str(exc))
    return Credentials(kid=token.kid, digest=token.digest, declared=declared, address=address)


@dataclass(frozen=True, slots=True, kw_only=True)
class KnownToken:
    """A token that is neither revoked nor long expired.

    Attributes:
        expires: Seconds since 1970.
        grants: What it lets do, with its narrowing.
    """

    kid: str
    digest: bytes = field(repr=False)
    account: str
    expires: float
    disabled: bool
    grants: tuple[Grant, ...]


class AccessBook:
    """All that may be called with, as of one moment. Immutable.

    Args:
        state: What the database says.
    """

    def __init__(self, state: AccessState) -> None:
        self.state = state
        grants: dict[str, list[Grant]] = {account.name: [] for account in state.accounts}
        for one in state.grants:
            if one.account in grants:
                grants[one.account].append(one.grant)
        self._disabled = {account.name for account in state.accounts if account.disabled}
        self.grants: Mapping[str, tuple[Grant, ...]] = MappingProxyType(
            {name: tuple(sorted(found)) for name, found in grants.items()}
        )
        self._certificates = {name: account.name for account in state.accounts for name in account.certificate_names}
        self.infos = MappingProxyType({one.info.id: one.info for one in state.tokens})
        self._tokens = {
            one.info.id: KnownToken(
                kid=one.info.id,
                digest=one.digest,
                account=one.info.account,
                expires=one.info.expires_at.timestamp(),
                disabled=one.info.account in self._disabled,
                grants=narrowed(grants[one.info.account], one.info.role, one.info.namespaces),
            )
            for one in state.tokens
            if one.info.account in grants
        }

    @property
    def empty(self) -> bool:
        """There is no account."""
        return not self.grants

    def knows(self, kid: str) -> bool:
        """Whether there is such a token."""
        return kid in self._tokens

    def caller(self, credentials: Credentials, now: float) -> Caller:
        """Who that is.

        Args:
            credentials: What they came with; remembers the answer for this book.
            now: Seconds since 1970.

        Raises:
            NotAuthenticated: Nobody.
        """
        if credentials._book is self and now < credentials._until and credentials._caller is not None:
            return credentials._caller
        caller, until = self._find(credentials, now)
        credentials._book, credentials._caller, credentials._until = self, caller, until
        return caller

    def _find(self, credentials: Credentials, now: float) -> tuple[Caller, float]:
        if credentials.wrong:
            raise NotAuthenticated(credentials.wrong)
        if credentials.kid:
            token = self._tokens.get(credentials.kid)
            same = hmac.compare_digest(credentials.digest, _NO_DIGEST if token is None else token.digest)
            if token is None or not same:
                raise NotAuthenticated(_NOT_KNOWN)
            return self._caller_of(token, credentials.address, now), token.expires + SKEW_S
        if credentials.certificate_names:
            return self._by_certificate(credentials), math.inf
        raise NotAuthenticated(
            "this server asks who calls, and the call has no token: set MODELBOX_TOKEN, or token or token_file in the "
            "settings"
        )

    def _caller_of(self, token: KnownToken, address: str, now: float) -> Caller:
        if now >= token.expires + SKEW_S:
            raise NotAuthenticated(f"the token {token.kid} has expired: modelbox tokens create makes another one")
        if token.disabled:
            raise NotAuthenticated(f"the account {token.account} is disabled: ask an admin of the server")
        return Caller(name=token.account, token_id=token.kid, address=address, grants=token.grants)

    def _by_certificate(self, credentials: Credentials) -> Caller:
        names = {self._certificates[name] for name in credentials.certificate_names if name in self._certificates}
        if len(names) != 1:
            what = "two accounts" if names else "no account"
            raise NotAuthenticated(
                f"the certificate's names are those of {what}: an admin gives an account one of them"
            )
        return self._of_account(names.pop(), credentials.address)

    def _of_account(self, name: str, address: str) -> Caller:
        if name not in self.grants:
            raise NotAuthenticated("the account is gone")
        if name in self._disabled:
            raise NotAuthenticated(f"the account {name} is disabled: ask an admin of the server")
        return Caller(name=name, address=address, grants=self.grants[name])

    def renewed(self, caller: Caller, now: float) -> Caller:
        """A caller as this book has them.

        Raises:
            NotAuthenticated: Their token or account is gone, expired or disabled.
        """
        if not caller.token_id:
            return self._of_account(caller.name, caller.address)
        token = self._tokens.get(caller.token_id)
        if token is None:
            raise NotAuthenticated(_NOT_KNOWN)
        return self._caller_of(token, caller.address, now)

    def expires(self, caller: Caller) -> float | None:
        """When `renewed` refuses a caller, seconds since 1970; None: not by itself."""
        token = self._tokens.get(caller.token_id)
        return None if token is None else token.expires + SKEW_S


EMPTY_BOOK = AccessBook(AccessState(accounts=(), grants=(), tokens=()))


class FailureCount:
    """Bad credentials by address: how many come at once, and how many after that.

    Addresses of one IPv6 network of 64 bits count as one. Remembers a bounded number of addresses, the latest.

    Args:
        burst: So many at once.
        per_s: And so many each second after that.
        max_addresses: Remembers so many.
    """

    def __init__(self, *, burst: int = 20, per_s: float = 0.5, max_addresses: int = 10_000) -> None:
        self._burst = burst
        self._per_s = per_s
        self._max_addresses = max_addresses
        self._full_at: OrderedDict[str, float] = OrderedDict()

    def add(self, address: str, now: float) -> float:
        """Counts one.

        Args:
            address: Where it came from.
            now: Seconds of a clock that never goes back.

        Returns:
            0, or where these were too many, how many seconds to wait.
        """
        key = _network(address)
        # The moment at which all failures so far are forgotten: each moves it on by as long as it takes to forget one.
        before = max(self._full_at.pop(key, now), now)
        wait_s = before + 1 / self._per_s - (now + self._burst / self._per_s)
        # What has to wait does not count: it would only wait for longer.
        self._full_at[key] = before if wait_s > 0 else before + 1 / self._per_s
        while len(self._full_at) > self._max_addresses:
            self._full_at.popitem(last=False)
        return max(0.0, wait_s)

    def __len__(self) -> int:
        return len(self._full_at)


def _network(address: str) -> str:
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    if isinstance(parsed, ipaddress.IPv6Address) and parsed.ipv4_mapped is None:
        return str(ipaddress.ip_network((parsed, 64), strict=False))
    return address
