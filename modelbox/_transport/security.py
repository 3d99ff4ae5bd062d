"""How a client finds out whom it talks to, and says who it is: TLS, and the token.

Owns the contexts of TLS, made of the settings and renewed when their files change, and the token, read again when its
file does. Invariants:

* A token goes to the server and to nobody else: not over plaintext to another machine, not to addresses that lead
  elsewhere (`modelbox._transport.direct`), not along with a redirect.
* It is in no repr, no log and no error.
* What is reached over TLS for HTTP is reached over TLS for gRPC, too.

Files are read by whoever makes a connection or a call, on the event loop: they are small, and local.
"""

from __future__ import annotations

import ipaddress
import logging
import os
import ssl
import time
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from urllib.parse import urlsplit

from modelbox._tls import LiveTls, harden, load_authorities, load_pair
from modelbox.config import ClientConfig, is_loopback
from modelbox.errors import ConfigError
from modelbox.redaction import keep_secret

__all__ = ("Security",)

_LOG = logging.getLogger(__name__)
_LOOK_EVERY_S = 1.0
_MAX_TOKEN_BYTES = 1024
_NOTHING: Mapping[str, str] = {}


class Security:
    """What goes with every connection and call to one server.

    Args:
        config: The settings.

    Attributes:
        tls: Whether the server is reached over TLS.
    """

    def __init__(self, config: ClientConfig) -> None:
        self._config = config
        parts = urlsplit(config.url)
        self._host = parts.hostname or ""
        self.tls = parts.scheme == "https"
        self._header: Mapping[str, str] = _NOTHING
        self._stamp: tuple[int, int, int] | None = None
        self._looked_at = 0.0
        self._problem = ""
        if config.token:
            self._take(config.token)

    # --- the token -----------------------------------------------------------------------------------------------

    def headers(self, host: str, *, tls: bool) -> Mapping[str, str]:
        """What a call to ``host`` brings to say who makes it; the keys are lower case.

        Raises:
            ConfigError: It would be sent where others could read it, or cannot be read.
        """
        config = self._config
        if not config.has_token:
            return _NOTHING
        if not tls and not config.insecure_token and not is_loopback(host):
            raise ConfigError(
                f"the token is not sent to {host} without TLS, where everybody on the way could read it: use an https://"
                " address; or set insecure_token = true in a network that you trust"
            )
        if config.token_file is not None:
            self._look(config.token_file)
        return self._header

    def rejected(self) -> None:
        """The server did not take the token: looks at the file again with the next call."""
        self._looked_at = 0.0

    def _look(self, path: Path) -> None:
        now = time.monotonic()
        if self._looked_at and now - self._looked_at < _LOOK_EVERY_S:
            return
        try:
            found = os.stat(path)
            stamp = found.st_ino, found.st_size, found.st_mtime_ns
            if stamp != self._stamp:
                with path.open("rb") as file:
                    content = file.read(_MAX_TOKEN_BYTES + 1)
                self._take(_token(content, path))
                self._stamp, self._problem = stamp, ""
        except (OSError, ConfigError) as exc:
            text = exc.message if isinstance(exc, ConfigError) else f"{path} cannot be read: {exc.strerror or exc}"
            if not self._header:
                raise ConfigError(f"token_file: {text}") from exc
            # A file that is just being replaced is no reason to go without.
            if text != self._problem:
                self._problem = text
                _LOG.warning("the token before goes on: %s", text)
        self._looked_at = now

    def _take(self, token: str) -> None:
        keep_secret(token)
        self._header = {"authorization": f"Bearer {token}"}

    # --- TLS -----------------------------------------------------------------------------------------------------

    @cached_property
    def _contexts(self) -> tuple[ssl.SSLContext, ssl.SSLContext]:
        """For HTTP and for gRPC.

        Raises:
            ConfigError: The files cannot be used.
        """
        config = self._config
        files = (config.tls_ca, config.tls_client_cert, config.tls_client_key)
        live = LiveTls(
            ssl.PROTOCOL_TLS_CLIENT,
            build=self._build,
            paths=tuple(path for path in files if path is not None),
            certificate=config.tls_client_cert,
            changed=_tell,
        )
        contexts = live.context("http/1.1", look=True), live.context("h2", look=True)
        live.open()
        return contexts

    def _build(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        harden(context)
        config = self._config
        if config.tls_ca is not None:
            load_authorities(context, config.tls_ca)
        else:
            context.load_default_certs()
        if config.tls_client_cert is not None:
            load_pair(context, config.tls_client_cert, config.tls_client_key or config.tls_client_cert)
        return context

    @property
    def http(self) -> ssl.SSLContext | bool:
        """As aiohttp takes it."""
        return self._contexts[0] if self.tls else True

    @property
    def grpc(self) -> ssl.SSLContext | None:
        """As grpclib takes it."""
        return self._contexts[1] if self.tls else None

    @property
    def elsewhere(self) -> ssl.SSLContext:
        """For addresses that are not the server's, such as a blob store's: nobody is told who the client is."""
        context = ssl.create_default_context()
        harden(context)
        if self._config.tls_ca is not None:
            load_authorities(context, self._config.tls_ca)
        return context

    def name_of(self, host: str) -> str | None:
        """Whose certificate ``host`` has to show, where that is not its own name.

        Servers say where they listen, which may be a bare address; certificates are for names. An address that the
        server itself has told us must then show that it is the server's.
        """
        return self._host if _is_address(host) and not _is_address(self._host) else None


def _token(content: bytes, path: Path) -> str:
    try:
        text = content.decode("ascii").strip()
    except UnicodeDecodeError:
        text = ""
    if not text or len(content) > _MAX_TOKEN_BYTES or not text.isprintable() or " " in text:
        raise ConfigError(f"{path} holds no token: expected one line such as modelbox tokens create prints")
    return text


def _tell(live: LiveTls) -> None:
    if live.problem:
        _LOG.warning("the new TLS files are not used, those before go on: %s", live.problem)
    else:
        _LOG.info("new TLS files are in use")


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True
