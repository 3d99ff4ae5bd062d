"""Who calls, and who may: accounts, roles and tokens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from modelbox.access import Caller

__all__ = ("AccessService", "Credentials")


class Credentials:
    """What came with a connection's or call's headers; `AccessService.caller` says what it is worth."""


class AccessService(Protocol):
    """The seam for the boundaries and for what follows callers; the class itself comes in the next commit.

    All but `admit` and `refresh` are synchronous and do no I/O.
    """

    @property
    def on(self) -> bool:
        """Whether there is access control."""

    def credentials(
        self,
        authorization: str,
        *,
        declared: str = "",
        address: str = "",
        certificate_names: tuple[str, ...] = (),
    ) -> Credentials:
        """Reads the ``authorization`` header (empty if there is none) or the names of a client certificate.

        Never raises: what is wrong is said by `caller`. Hashes the secret once, so keep it as long as the headers hold.
        """

    def caller(self, credentials: Credentials) -> Caller:
        """Who that is at this moment; cheap enough for each call.

        Raises:
            NotAuthenticated: Nobody, or nobody any more.
            ServerBusy: Too many bad credentials came from this address; good ones always pass.
        """

    async def admit(self, credentials: Credentials) -> Caller:
        """`caller`, but for a token that this replica has not heard of yet it looks once (rate-limited)."""

    def renewed(self, caller: Caller) -> Caller:
        """A caller as they are at this moment, for what goes on for long: their roles may have changed.

        Raises:
            NotAuthenticated: Their token was revoked or has expired, or their account is gone or disabled.
        """

    def expires_in(self, caller: Caller) -> float | None:
        """Seconds until `renewed` will refuse them if nothing changes; None: never."""

    def on_change(self, callback: Callable[[], None]) -> Callable[[], None]:
        """Has ``callback`` called on the event loop after accounts, roles or tokens changed; returns what ends that."""

    async def refresh(self) -> None:
        """Reads accounts, roles and tokens again."""
