"""What is said where a library that an integration connects to is not installed."""

from __future__ import annotations

from modelbox.errors import ConfigError

__all__ = ("not_installed",)


def not_installed(what: str, extra: str, error: ImportError) -> ConfigError:
    """The error to raise.

    Args:
        what: Which part asks for it.
        extra: Of the package, that brings it.
        error: What the import raised.
    """
    return ConfigError(f"{what} needs {error.name}: pip install 'modelbox[{extra}]'", extra=extra)
