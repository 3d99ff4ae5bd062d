"""How a program's settings are read: flags over environment over TOML file over default.

Owns the kinds of settings and `Settings`, which makes of one dataclass its flags, variables, file and table. Every
problem is reported at once, each with the key, the value and what is allowed.
"""

from __future__ import annotations

import difflib
import ipaddress
import json
import math
import textwrap
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import Field, dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar
from urllib.parse import unquote, urlsplit

from modelbox.errors import ConfigError
from modelbox.redaction import keep_secret
from modelbox.refs import shown

__all__ = (
    "ADDRESS",
    "BOOL",
    "BOOLEANS",
    "HOST",
    "LEVEL",
    "PATH",
    "PORT",
    "Kind",
    "SettingError",
    "Settings",
    "choice",
    "is_loopback",
    "number",
    "port_problems",
    "problems_error",
    "setting",
    "text",
)

T = TypeVar("T")
_LOG_LEVELS = ("debug", "info", "warning", "error")
_TRUE, _FALSE = ("true", "yes", "on", "1"), ("false", "no", "off", "0")
BOOLEANS = frozenset(_TRUE + _FALSE)
"""What `BOOL` reads, in lower case."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Kind:
    """How one setting is read; ``read`` raises ValueError with what was expected.

    Attributes:
        secret: Whether values may hold a password, and so are shown nowhere.
    """

    read: Callable[[Any], Any]
    allowed: str
    secret: bool = False


def number(low: float, high: float, unit: str, *, whole: bool) -> Kind:
    """A number from ``low`` to ``high``."""
    allowed = f"{low} to {high} {unit}".rstrip()

    def read(value: Any) -> Any:
        if isinstance(value, str):
            value = int(value) if whole else float(value)
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise ValueError
        if not math.isfinite(value) or not low <= value <= high:
            raise ValueError
        return value if whole else float(value)

    return Kind(read=read, allowed=allowed)


def text(max_chars: int, allowed: str, *, secret: bool = False) -> Kind:
    """A line of printable text, or none."""

    def read(value: Any) -> str:
        if not isinstance(value, str) or len(value) > max_chars or (value and not value.isprintable()):
            raise ValueError
        return value

    return Kind(read=read, allowed=allowed, secret=secret)


def choice(*allowed: str) -> Kind:
    """One of a few words."""

    def read(value: Any) -> str:
        if value not in allowed:
            raise ValueError
        return str(value)

    return Kind(read=read, allowed=", ".join(allowed))


def _read_bool(value: Any) -> bool:
    if isinstance(value, str) and value.lower() in BOOLEANS:
        return value.lower() in _TRUE
    if not isinstance(value, bool):
        raise ValueError
    return value


def _read_host(value: Any) -> str:
    if not isinstance(value, str) or not value or len(value) > 253 or not value.isprintable() or " " in value:
        raise ValueError
    return value


def _read_address(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    host, colon, port = value.rpartition(":")
    if value and not (colon and host and port.isdecimal() and 0 < int(port) < 65536 and value.isprintable()):
        raise ValueError
    return value


def _read_path(value: Any) -> Path:
    if not isinstance(value, str | Path) or not str(value) or "\0" in str(value):
        raise ValueError
    return Path(value).expanduser()


def _read_level(value: Any) -> str:
    if not isinstance(value, str) or value.lower() not in _LOG_LEVELS:
        raise ValueError
    return value.lower()


PORT = number(0, 65535, "", whole=True)
BOOL = Kind(read=_read_bool, allowed="true or false")
HOST = Kind(read=_read_host, allowed="a host name or IP address")
ADDRESS = Kind(read=_read_address, allowed="host:port, or empty")
PATH = Kind(read=_read_path, allowed="a directory")
LEVEL = Kind(read=_read_level, allowed=", ".join(_LOG_LEVELS))


def _keep_password(value: str) -> None:
    try:
        password = urlsplit(value).password or ""
    except ValueError:
        return
    keep_secret(password)
    keep_secret(unquote(password))


def setting(default: Any, kind: Kind, help_text: str) -> Any:
    """A field of a settings class."""
    return field(default=default, repr=not kind.secret, metadata={"kind": kind, "help": help_text})


class Settings(Generic[T]):
    """The settings of one program, as fields of a dataclass made with `setting`.

    Args:
        cls: The dataclass.
        prefix: Of the environment variables.
        path_variable: Names the TOML file where no flag does.
    """

    def __init__(self, cls: type[T], *, prefix: str, path_variable: str) -> None:
        # Others are made of what was read.
        self._fields = [f for f in fields(cls) if "kind" in f.metadata]  # type: ignore[arg-type]  # a dataclass
        self._kinds: dict[str, Kind] = {f.name: f.metadata["kind"] for f in self._fields}
        self._prefix = prefix
        self._path_variable = path_variable

    def read(
        self,
        *,
        flags: Mapping[str, object],
        env: Mapping[str, str],
        config_path: Path | None,
        problems: list[str],
        tables: dict[str, object] | None = None,
    ) -> dict[str, Any]:
        """The values that were given, checked.

        Args:
            flags: By setting; what is None was not given.
            env: The environment.
            config_path: A TOML file; without it the variable names one or there is none.
            problems: Gets one line for every problem.
            tables: Gets what the file has under its keys, which are no settings.
        """
        values: dict[str, Any] = {}
        if config_path is None and env.get(self._path_variable):
            config_path = Path(env[self._path_variable])
        file = {} if config_path is None else _read_file(config_path, problems)
        for key in tables or ():
            if tables is not None and key in file:
                tables[key] = file.pop(key)
        sources: list[tuple[Mapping[str, object], Callable[[str], str]]] = [
            (file, lambda key: f"{key} in {config_path}"),
            ({key: env[self.variable(key)] for key in self._kinds if self.variable(key) in env}, self.variable),
            ({key: value for key, value in flags.items() if value is not None}, _flag),
        ]
        for source, name in sources:
            values |= self.check_all(source, name, problems)
        return values

    def check_all(
        self, source: Mapping[str, object], name: Callable[[str], str], problems: list[str]
    ) -> dict[str, Any]:
        """The values of one source, checked; ``name`` says how a problem calls a key."""
        values: dict[str, Any] = {}
        for key, value in source.items():
            if key not in self._kinds:
                problems.append(f"{name(key)}: there is no such setting{self._nearest(key)}")
            elif (read := self.check(key, value, name(key), problems)) is not None:
                values[key] = read
        return values

    def rows(self) -> list[tuple[str, str, str]]:
        """Every setting with what is allowed and its help text, in order."""
        return [(f.name, f.metadata["kind"].allowed, f.metadata["help"]) for f in self._fields]

    def check(self, key: str, value: object, name: str, problems: list[str]) -> Any:
        """One value, or None and a problem."""
        kind = self._kinds[key]
        if kind.secret and isinstance(value, str):
            _keep_password(value)
        try:
            return kind.read(value)
        except (ValueError, TypeError, OverflowError, RuntimeError) as exc:
            detail = f" ({exc.args[0]})" if isinstance(exc, SettingError) else ""
            given = "(not shown)" if kind.secret else shown(value)
            problems.append(f"{name} = {given}: expected {kind.allowed}{detail}")
            return None

    def variable(self, key: str) -> str:
        """The environment variable of a setting."""
        return f"{self._prefix}{key.upper()}"

    def help(self) -> list[tuple[str, str]]:
        """Every setting with its help text, in order."""
        return [(f.name, f.metadata["help"]) for f in self._fields]

    def switches(self) -> frozenset[str]:
        """The settings that are true or false."""
        return frozenset(name for name, kind in self._kinds.items() if kind is BOOL)

    def toml(self, *title: str) -> str:
        """A file with every setting, explained and commented out."""
        lines = [f"# {line}" for line in title]
        for f in self._fields:
            lines += [
                "",
                *(f"# {line}" for line in _wrap(f.metadata["help"])),
                f"# Allowed: {f.metadata['kind'].allowed}.",
            ]
            lines.append(f"# {f.name} = {_shown(f)}")
        return "\n".join(lines) + "\n"

    def table(self) -> str:
        """The settings as Markdown."""
        lines = ["| setting | flag | environment | default | allowed | meaning |", "|---|---|---|---|---|---|"]
        lines += [
            f"| `{f.name}` | `{_flag(f.name)}` | `{self.variable(f.name)}` | `{_shown(f)}` "
            f"| {f.metadata['kind'].allowed} | {f.metadata['help']} |"
            for f in self._fields
        ]
        return "\n".join(lines)

    def _nearest(self, key: str) -> str:
        near = difflib.get_close_matches(key, self._kinds, n=1)
        return f" (did you mean {near[0]}?)" if near else f"; there are {', '.join(self._kinds)}"


class SettingError(ValueError):
    """From ``Kind.read``: with a word on what is wrong, beside what is allowed."""


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def port_problems(config: object, keys: tuple[str, ...]) -> list[str]:
    """Says which settings name the same port."""
    ports = {key: port for key in keys if (port := getattr(config, key))}
    problems = []
    for port in sorted({port for port in ports.values() if list(ports.values()).count(port) > 1}):
        same = " and ".join(key for key in ports if ports[key] == port)
        problems.append(f"{same} are all {port}: expected different ports")
    return problems


def problems_error(problems: list[str]) -> ConfigError:
    """All problems as one error."""
    return ConfigError("\n".join(["the settings cannot work:", *(f"  - {p}" for p in problems)]), problems=problems)


def _read_file(path: Path, problems: list[str]) -> dict[str, object]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except OSError as exc:
        problems.append(f"the file {path} cannot be read: {exc.strerror or exc}")
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
        problems.append(f"the file {path} is not valid TOML: {exc}")
    except RecursionError:
        problems.append(f"the file {path} is not valid TOML: it is nested too deeply")
    return {}


def _flag(key: str) -> str:
    return "--" + key.replace("_", "-")


def _shown(f: Field[Any]) -> str:
    return json.dumps(text) if (text := f.metadata.get("shown")) else _toml(f.default)


def _toml(value: object) -> str:
    if value is None:
        return '""'
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, tuple | list):
        return json.dumps(list(value))
    return json.dumps(str(value))


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(text, 100)
