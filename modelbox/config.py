"""Settings of a client: where the server is, where the cache lies, how long to wait.

Owns `ClientConfig` and the one function that reads it, `load_client_config`: argument over environment
(``MODELBOX_…``) over ``client.toml`` over default. Every problem is reported at once. Nothing else on the client side
looks at the environment; nothing here talks to a server or makes a directory.
"""

from __future__ import annotations

import contextlib
import getpass
import ipaddress
import os
import re
import secrets
import socket
import threading
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from modelbox.errors import ConfigError
from modelbox.refs import shown
from modelbox.signing.policy import SignaturePolicy, parse_modes, parse_trusted
from modelbox.signing.trust import Trust

__all__ = (
    "ClientConfig",
    "client_config_path",
    "client_config_toml",
    "is_loopback",
    "load_client_config",
    "process_instance_id",
)

_UNITS = {"": 1, "b": 1, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30, "tib": 1 << 40}
_SIZE = re.compile(r"(\d+)\s*([a-z]*)", re.IGNORECASE)


def _url(value: object) -> str:
    text = _text(value).rstrip("/")
    parts = urlsplit(text)
    try:
        port = parts.port
    except ValueError as exc:
        raise ValueError("a port is a number from 1 to 65535") from exc
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        raise ValueError("expected http://host:port or https://host:port")
    if parts.username is not None or parts.password is not None:
        raise ValueError("a user or password does not belong into the address")
    if parts.query or parts.fragment:
        raise ValueError("expected http://host:port without a query")
    # Schemes are compared as they are.
    return f"{parts.scheme}://{text.partition('://')[2]}"


def _text(value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise ValueError("expected text")
    if not value.isprintable() or len(value) > 1024:
        raise ValueError("expected one line of at most 1024 printable characters")
    return value.strip()


def _label(value: object) -> str:
    text = _text(value)
    if len(text) > 128 or not text.isascii():
        # It travels in a header.
        raise ValueError("expected at most 128 ASCII characters")
    return text


def _sidecar(value: object) -> str:
    if value == "":
        return ""
    text = _text(value)
    path = text.removeprefix("unix://")
    if path == text or not path.startswith("/") or "\0" in path or len(path.encode()) > 107:
        raise ValueError("expected unix:///path/of/the/socket, with a path of at most 107 bytes, or empty")
    return text


def _directory(value: object) -> Path:
    if isinstance(value, str) and value.strip():
        value = Path(value)
    if not isinstance(value, Path) or "\0" in str(value):
        raise ValueError("expected a directory")
    try:
        return value.expanduser().absolute()
    except RuntimeError as exc:
        raise ValueError(str(exc)) from exc


def _file(value: object) -> Path | None:
    if value == "":
        return None
    if isinstance(value, str):
        value = Path(value)
    if not isinstance(value, Path) or "\0" in str(value):
        raise ValueError("expected a file, or empty")
    try:
        return value.expanduser().absolute()
    except RuntimeError as exc:
        raise ValueError(str(exc)) from exc


def _token(value: object) -> str:
    if not isinstance(value, str) or len(value) > 1024 or not value.isascii() or not value.isprintable():
        raise ValueError("expected a token such as modelbox tokens create prints, or empty")
    if " " in value:
        raise ValueError("expected a token without spaces")
    return value


def _flag(value: object) -> bool:
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "1", "false", "no", "off", "0"):
        return value.lower() in ("true", "yes", "on", "1")
    if not isinstance(value, bool):
        raise ValueError("expected true or false")
    return value


def _size(value: object) -> int:
    if isinstance(value, str) and (match := _SIZE.fullmatch(value.strip())) and match[2].lower() in _UNITS:
        value = int(match[1]) * _UNITS[match[2].lower()]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 << 20 <= value < 1 << 60:
        raise ValueError("expected bytes, at least 1 MiB: a number, or text such as '20 GiB'")
    return value


def _seconds(value: object) -> float:
    if isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            raise ValueError("expected seconds") from None
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ValueError("expected seconds")
    if not 0.01 <= value <= 86_400:
        raise ValueError("expected 0.01 to 86400 seconds")
    return float(value)


def _factor(value: object) -> float:
    try:
        factor = float(value) if isinstance(value, str) else value
    except ValueError:
        factor = None
    if isinstance(factor, bool) or not isinstance(factor, int | float) or not 1.1 <= factor <= 10_000:
        raise ValueError("expected a number from 1.1 to 10000")
    return float(factor)


def _delay(value: object) -> float:
    if value in (0, "0"):
        return 0.0
    try:
        return _seconds(value)
    except ValueError:
        raise ValueError("expected 0, or 0.01 to 86400 seconds") from None


def _choice(*names: str) -> Callable[[object], str]:
    """One of ``names``; true and false count as on and off."""

    def read(value: object) -> str:
        if isinstance(value, bool):
            value = "on" if value else "off"
        if not isinstance(value, str) or value.strip().lower() not in names:
            raise ValueError(f"expected {', '.join(names[:-1])} or {names[-1]}")
        return value.strip().lower()

    return read


def _size_or_none(value: object) -> int:
    if value in (0, "0") and not isinstance(value, bool):
        return 0
    try:
        return _size(value)
    except ValueError as exc:
        raise ValueError(f"expected 0, or {str(exc).removeprefix('expected ')}") from None


def _listed(value: object) -> str:
    """Text with commas, or the same as a list in a file."""
    if isinstance(value, list | tuple):
        if any(not isinstance(item, str) or "," in item for item in value):
            raise ValueError("expected a list of texts")
        value = ",".join(value)
    return "" if value == "" else _text(value)


def _modes(value: object) -> str:
    text = _listed(value)
    parse_modes(text)
    return text


def _trusted(value: object) -> str:
    text = _listed(value)
    parse_trusted(text)
    return text


def _default_cache_dir(env: Mapping[str, str]) -> Path:
    base = env.get("XDG_CACHE_HOME", "")
    return (Path(base) if os.path.isabs(base) else _home(env) / ".cache") / "modelbox"


def _default_spool_dir(env: Mapping[str, str]) -> Path:
    base = env.get("XDG_STATE_HOME", "")
    return (Path(base) if os.path.isabs(base) else _home(env) / ".local" / "state") / "modelbox" / "spool"


def _default_actor(env: Mapping[str, str]) -> str:
    user = env.get("LOGNAME") or env.get("USER") or ""
    if not user:
        # No passwd entry for this uid, as in many containers.
        with contextlib.suppress(KeyError, OSError, ImportError):
            user = getpass.getuser()
    if not user:
        user = f"uid{os.getuid()}" if hasattr(os, "getuid") else "unknown"
    text = f"{user}@{socket.gethostname()}"
    return "".join(ch if ch.isascii() and ch.isprintable() else "?" for ch in text)[:128]


def _home(env: Mapping[str, str]) -> Path:
    home = env.get("HOME", "")
    return Path(home) if os.path.isabs(home) else Path(os.path.expanduser("~"))


def _about(
    read: Callable[[object], Any],
    text: str,
    make: Callable[[Mapping[str, str]], Any] | None = None,
    *,
    secret: bool = False,
) -> dict[str, Any]:
    """What the dataclass cannot say of a setting.

    Args:
        read: Checks it.
        text: Its help.
        make: Its default, where that depends on the user.
        secret: Whether values are shown nowhere.
    """
    return {"read": read, "text": text, "make": make, "secret": secret}


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientConfig:
    """What a client needs to know; made by `load_client_config`.

    Attributes:
        url: HTTP address of the central server, without a slash at the end; the gRPC address is asked for there.
        cache_dir: Where downloaded models are kept, shared by all processes of this user.
        cache_max_bytes: What the cache is pruned to, oldest use first; models in use are never dropped.
        spool_dir: Where runs are recorded until the server has them, shared by all processes of this user. Not on a
            network file system.
        spool_max_bytes: What one process may leave there; when it is full, points of metrics are dropped and counted.
        connect_timeout_s: How long to wait for a connection.
        request_timeout_s: How long to wait for the answer to one call, retries included. Bulk transfers are not
            bounded by it but by `stall_timeout_s`.
        stall_timeout_s: How long an upload or download may stand still before it is broken off and resumed.
        actor: Who is named in the history of what this client does.
        instance_id: Name of this process in ``modelbox fleet``; empty: see `process_instance_id`.
        swap_jitter_s: A model whose alias was moved is swapped up to so much later, drawn evenly, so that a large fleet
            does not ask and download at once.
        swap_interval_s: How long a model keeps a version before the next one replaces it; of several that arrive
            meanwhile, the newest counts. A rollback does not wait.
        probe: Which versions are tried in a process of their own before this one opens them: ``off``, ``on`` (all), or
            ``unsigned`` (those without a signature that was verified).
        probe_timeout_s: How long that process may take to start and to open the model.
        probe_max_bytes: Memory that it may take; 0 for an allowance by the size of the files.
        slower: What becomes of a version whose runs take many times as long as those of the one that serves: ``off``
            (nobody looks), ``warn`` or ``refuse``.
        slower_factor: How many times.
        signatures: What becomes of a version that nobody trusted has signed: ``off``, ``warn`` or ``require``, or by
            pattern (``langtech/*=require,*=warn``, the first that fits counts). Empty: ``warn`` where somebody is
            trusted, else ``off``.
        trusted_keys: Absolute paths of public keys (PEM), separated by commas; ``PATTERN=/path`` trusts one for the
            models of a pattern only. Read anew with each verification.
        trusted_roots: The same for root certificates.
        sidecar: ``unix:///path`` of the sidecar's socket; then `Client.load` has models run there. Empty: they run in
            this process.
        tls_ca: The authorities that are believed for ``https://`` addresses; None for those of the system.
        tls_client_cert: A certificate that says who this client is, where the server asks for one.
        tls_client_key: Its key; None if both are in one file.
        token: Says to the server who this client is. A secret: in no repr, log or error.
        token_file: Where the token is, instead of `token`; read again when it changes.
        insecure_token: Send the token without TLS, to other machines, too.
    """

    url: str = field(
        default="http://127.0.0.1:8080",
        metadata=_about(_url, "Address of the central server: http://host:port, or https://host:port for TLS."),
    )
    cache_dir: Path = field(
        metadata=_about(
            _directory,
            "Where downloaded models are kept: a directory. Default: modelbox below $XDG_CACHE_HOME or ~/.cache.",
            _default_cache_dir,
        )
    )
    cache_max_bytes: int = field(
        default=20 << 30,
        metadata=_about(_size, "What the cache is pruned to: bytes, or text such as '20 GiB'; at least 1 MiB."),
    )
    spool_dir: Path = field(
        metadata=_about(
            _directory,
            "Where runs are recorded until the server has them: a directory on a local disk. Default: modelbox/spool"
            " below $XDG_STATE_HOME or ~/.local/state.",
            _default_spool_dir,
        )
    )
    spool_max_bytes: int = field(
        default=1 << 30,
        metadata=_about(_size, "What one process may keep there: bytes, or text such as '2 GiB'; at least 1 MiB."),
    )
    connect_timeout_s: float = field(
        default=5.0,
        metadata=_about(_seconds, "How long to wait for a connection, in seconds (0.01 to 86400)."),
    )
    request_timeout_s: float = field(
        default=30.0,
        metadata=_about(
            _seconds, "How long to wait for the answer to one call, retries included, in seconds (0.01 to 86400)."
        ),
    )
    stall_timeout_s: float = field(
        default=30.0,
        metadata=_about(
            _seconds,
            "How long a transfer may stand still before it is broken off and resumed, in seconds (0.01 to 86400).",
        ),
    )
    swap_jitter_s: float = field(
        default=0.0,
        metadata=_about(
            _delay,
            "A moved model is swapped up to so many seconds later, so that a large fleet does not do it at once: 0, or"
            " 0.01 to 86400.",
        ),
    )
    swap_interval_s: float = field(
        default=0.0,
        metadata=_about(
            _delay,
            "How long a model keeps a version before the next one replaces it, unless it is a way back; of several that"
            " arrive meanwhile, the newest counts: 0, or 0.01 to 86400 seconds.",
        ),
    )
    probe: str = field(
        default="off",
        metadata=_about(
            _choice("off", "unsigned", "on"),
            "Versions that are tried in a process of their own before they are opened: off, on, or unsigned (those"
            " without a signature that was verified).",
        ),
    )
    probe_timeout_s: float = field(
        default=60.0,
        metadata=_about(
            _seconds, "How long that process may take to start and to open the model, in seconds (0.01 to 86400)."
        ),
    )
    probe_max_bytes: int = field(
        default=0,
        metadata=_about(
            _size_or_none,
            "Memory that it may take beyond the runtime's own: bytes, or text such as '2 GiB'. 0: four times the size"
            " of the files, and 512 MiB, but no more than is left.",
        ),
    )
    slower: str = field(
        default="warn",
        metadata=_about(
            _choice("off", "warn", "refuse"),
            "Versions whose runs take more than slower_factor times as long as those of the one that serves: off"
            " (nobody looks), warn or refuse.",
        ),
    )
    slower_factor: float = field(
        default=10.0,
        metadata=_about(_factor, "How many times as long they may take: 1.1 to 10000."),
    )
    actor: str = field(
        metadata=_about(
            _label, "Who is named in the history of what this client does. Default: user@host.", _default_actor
        )
    )
    instance_id: str = field(
        default="",
        metadata=_about(
            lambda value: "" if value == "" else _label(value),
            "Name of the process in `modelbox fleet`, unique per process. Default: made from host and process id.",
        ),
    )
    signatures: str = field(
        default="",
        metadata=_about(
            _modes,
            "Versions that nobody trusted has signed: off, warn or require; or by pattern, such as"
            " 'langtech/*=require,*=warn'. Default: warn where somebody is trusted, else off.",
        ),
    )
    trusted_keys: str = field(
        default="",
        metadata=_about(
            _trusted,
            "Public keys whose signatures count: absolute paths of PEM files, or PATTERN=/path, separated by commas.",
        ),
    )
    trusted_roots: str = field(
        default="",
        metadata=_about(
            _trusted,
            "Root certificates that vouch for signers: absolute paths of PEM files, or PATTERN=/path, separated by"
            " commas.",
        ),
    )
    sidecar: str = field(
        default="",
        metadata=_about(
            _sidecar,
            "Socket of a sidecar in which models run: unix:///path. Empty: they run in this process.",
        ),
    )
    tls_ca: Path | None = field(
        default=None,
        metadata=_about(
            _file,
            "File with the authorities that are believed for https:// addresses, in PEM. Empty: those of the system.",
        ),
    )
    tls_client_cert: Path | None = field(
        default=None,
        metadata=_about(
            _file, "File with a certificate, in PEM, that says who this client is, where the server asks for one."
        ),
    )
    tls_client_key: Path | None = field(
        default=None,
        metadata=_about(_file, "File with the key of tls_client_cert. Empty: it is in the same file."),
    )
    token: str = field(
        default="",
        repr=False,
        metadata=_about(_token, "Token that says to the server who this client is. Better in token_file.", secret=True),
    )
    token_file: Path | None = field(
        default=None,
        metadata=_about(_file, "File with the token; read again when it changes. Empty: none."),
    )
    insecure_token: bool = field(
        default=False,
        metadata=_about(
            _flag, "Send the token to other machines although http:// addresses are plaintext: true or false."
        ),
    )

    @property
    def has_token(self) -> bool:
        """Whether the client says who it is by a token."""
        return bool(self.token) or self.token_file is not None

    def signature_policy(self) -> SignaturePolicy:
        """What the settings of signatures ask for; nothing is read yet, see `SignaturePolicy.open`."""
        trust = Trust(keys=parse_trusted(self.trusted_keys), roots=parse_trusted(self.trusted_roots))
        return SignaturePolicy(parse_modes(self.signatures or ("off" if trust.empty else "warn")), trust)


def client_config_path(env: Mapping[str, str] | None = None) -> Path:
    """Where the settings file is looked for: ``$MODELBOX_CLIENT_CONFIG``, else below the user's configuration."""
    env = os.environ if env is None else env
    if named := env.get("MODELBOX_CLIENT_CONFIG"):
        return Path(named)
    base = env.get("XDG_CONFIG_HOME", "")
    return (Path(base) if os.path.isabs(base) else _home(env) / ".config") / "modelbox" / "client.toml"


def load_client_config(
    *, config_path: Path | None = None, env: Mapping[str, str] | None = None, **overrides: Any
) -> ClientConfig:
    """Reads the settings: argument over environment over file over default.

    Args:
        config_path: The TOML file; it must exist then. None: `client_config_path`, if there is one.
        env: The environment; None for this process's.
        **overrides: Values by name of setting; None means "not given".

    Raises:
        ConfigError: Names every wrong value at once: where it was set, what it is, and what is allowed
            (``fields["problems"]``).
    """
    env = os.environ if env is None else env
    known = {f.name: f for f in fields(ClientConfig)}
    if unknown := sorted(set(overrides) - set(known)):
        raise TypeError(f"load_client_config got unexpected settings: {', '.join(unknown)}")
    problems: list[str] = []
    path = config_path or client_config_path(env)
    named = config_path is not None or bool(env.get("MODELBOX_CLIENT_CONFIG"))
    from_file = _read_toml(path, must_exist=named, problems=problems)
    problems += [
        f"{path}: {shown(key)} is not a setting; there are {', '.join(known)}" for key in from_file if key not in known
    ]
    values: dict[str, Any] = {}
    strength: dict[str, int] = {}
    for name, setting in known.items():
        variable = f"MODELBOX_{name.upper()}"
        if overrides.get(name) is not None:
            where, value, strength[name] = name, overrides[name], 3
        elif env.get(variable):
            where, value, strength[name] = variable, env[variable], 2
        elif name in from_file:
            where, value, strength[name] = f"{path}: {name}", from_file[name], 1
        else:
            if make := setting.metadata["make"]:
                values[name] = make(env)
            continue
        try:
            values[name] = setting.metadata["read"](value)
        except ValueError as exc:
            given = "(not shown)" if setting.metadata["secret"] else shown(value)
            problems.append(f"{where} is {given}: {exc}")
    problems += _token_problems(values, strength)
    if values.get("tls_client_key") and not values.get("tls_client_cert"):
        problems.append("tls_client_key is set, and tls_client_cert is not")
    if problems:
        raise ConfigError("these settings cannot be used: " + "; ".join(problems), problems=problems)
    return ClientConfig(**values)


def _token_problems(values: dict[str, Any], strength: Mapping[str, int]) -> list[str]:
    """What is wrong with the token; of two, the one that was said by the stronger means is kept."""
    problems = []
    if values.get("token") and values.get("token_file"):
        if strength["token"] == strength["token_file"]:
            problems.append("token and token_file are both set: which one is it?")
        weaker = "token" if strength["token"] < strength["token_file"] else "token_file"
        values.pop(weaker)
    url = values.get("url", "")
    if (values.get("token") or values.get("token_file")) and not values.get("insecure_token"):
        parts = urlsplit(url)
        if parts.scheme == "http" and not is_loopback(parts.hostname or ""):
            problems.append(
                f"{url} is plaintext, and a token is set, which everybody on the way could read: use an https:// "
                "address; or set insecure_token = true in a network that you trust"
            )
    return problems


def is_loopback(host: str) -> bool:
    """Whether ``host`` can only be this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _read_toml(path: Path, *, must_exist: bool, problems: list[str]) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        if must_exist:
            problems.append(f"{path} does not exist")
    except OSError as exc:
        problems.append(f"{path} cannot be read: {exc.strerror}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        problems.append(f"{path} is not a TOML file: {exc}")
    except RecursionError:
        problems.append(f"{path} is not a TOML file: it is nested too deeply")
    return {}


def client_config_toml(values: Mapping[str, object] | None = None) -> str:
    """A commented settings file: ``values`` set, every other setting shown with its default, commented out."""
    import json

    lines = [
        "# Settings of ModelBox's client. A command-line argument is stronger than an environment variable, which is",
        "# stronger than this file. Every setting may be left out.",
    ]
    for setting in fields(ClientConfig):
        lines += ["", f"# {setting.metadata['text']}", f"# Environment: MODELBOX_{setting.name.upper()}"]
        given = values is not None and values.get(setting.name) is not None
        value = values[setting.name] if values is not None and given else setting.default
        if setting.metadata["make"] and not given:
            value = setting.metadata["make"](os.environ)
        if value is None or isinstance(value, Path):
            value = str(value or "")
        text = json.dumps(value, ensure_ascii=False)
        lines.append(f"{'' if given else '#'}{setting.name} = {text}")
    return "\n".join(lines) + "\n"


_instance_lock = threading.Lock()
_instance: tuple[int, str] = (0, "")


def process_instance_id() -> str:
    """``host-pid-random``: the same for the life of this process, another one in a forked child."""
    global _instance
    pid = os.getpid()
    if _instance[0] != pid:
        with _instance_lock:
            if _instance[0] != pid:
                host = re.sub(r"[^A-Za-z0-9._-]", "-", socket.gethostname())[:80]
                _instance = (pid, f"{host}-{pid}-{secrets.token_hex(4)}")
    return _instance[1]


def _after_fork() -> None:
    global _instance_lock
    _instance_lock = threading.Lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
