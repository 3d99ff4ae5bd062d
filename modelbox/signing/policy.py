"""What a client does about signatures: nothing, warn, or refuse; by default for all models, or by pattern.

Owns the text form of the settings ``signatures``, ``trusted_keys`` and ``trusted_roots``, and the one decision that
everything which takes a version from a server asks: `SignaturePolicy.check`.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from modelbox.errors import ConfigError, IntegrityError, InvalidError, SignatureRefused
from modelbox.objects import ModelVersion
from modelbox.refs import ModelRef
from modelbox.signing.trust import Refusal, SignedBy, Trust, TrustedFile, matches

__all__ = ("Mode", "ModeRule", "SignaturePolicy", "parse_modes", "parse_trusted")

_log = logging.getLogger(__name__)
_PATTERN = re.compile(r"[a-z0-9._*?\[\]-]+(?:/[a-z0-9._*?\[\]-]+)?")


class Mode(StrEnum):
    """What becomes of a version that nobody trusted has signed."""

    OFF = "off"
    WARN = "warn"
    REQUIRE = "require"


@dataclass(frozen=True, slots=True, kw_only=True)
class ModeRule:
    """The mode for the models of a pattern (see `modelbox.signing.matches`)."""

    mode: Mode
    pattern: str = "*"


def parse_modes(text: str) -> tuple[ModeRule, ...]:
    """Reads ``require``, or ``langtech/*=require, *=warn``: the first pattern that fits counts, none means off.

    Raises:
        InvalidError: It is neither.
    """
    rules = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        pattern, _, mode = part.rpartition("=")
        if mode.strip() not in set(Mode):
            raise InvalidError("expected off, warn or require, or PATTERN=off|warn|require separated by commas")
        rules.append(ModeRule(mode=Mode(mode.strip()), pattern=_pattern(pattern.strip()) if pattern else "*"))
    return tuple(rules)


def parse_trusted(text: str) -> tuple[TrustedFile, ...]:
    """Reads ``/etc/modelbox/ci.pub, langtech/*=/etc/modelbox/speech.pub``: files, for all models or those of a pattern.

    Raises:
        InvalidError: A path is not absolute (or below ``~``), or a pattern is none.
    """
    files = []
    for part in filter(None, (part.strip() for part in text.split(","))):
        pattern, separator, name = part.partition("=")
        if not separator or pattern.startswith(("/", "~")):
            pattern, name = "*", part
        try:
            path = Path(name.strip()).expanduser()
        except (RuntimeError, ValueError):
            path = Path()  # of a user whom there is not
        if not path.is_absolute() or "\0" in name:
            raise InvalidError("expected absolute paths of PEM files, or PATTERN=/path, separated by commas")
        files.append(TrustedFile(path=path, pattern=_pattern(pattern.strip())))
    return tuple(files)


def _pattern(text: str) -> str:
    if not _PATTERN.fullmatch(text):
        raise InvalidError("expected a pattern such as *, langtech or langtech/wav*")
    return text


class SignaturePolicy:
    """Decides about versions that a server offers.

    Args:
        rules: The first that fits counts; without one, nothing is verified.
        trust: Whom to believe.

    Concurrency: may be used from any thread; `check` blocks for a few small reads.
    """

    def __init__(self, rules: Sequence[ModeRule] = (), trust: Trust | None = None) -> None:
        self._rules = tuple(rules)
        self._trust = trust or Trust()

    @property
    def trust(self) -> Trust:
        """Whom it believes."""
        return self._trust

    def open(self) -> None:
        """Reads the trusted files, so that a mistake in them shows at the start.

        Raises:
            ConfigError: One cannot be used; or signatures are required, and nobody is trusted.
        """
        if all(rule.mode is Mode.OFF for rule in self._rules):
            return
        if self._trust.empty and any(rule.mode is Mode.REQUIRE for rule in self._rules):
            raise ConfigError(
                "signatures are required, but nobody is trusted: name public keys in trusted_keys, or root "
                "certificates in trusted_roots"
            )
        self._trust.check()

    def mode(self, path: str) -> Mode:
        """What holds for ``namespace/model``."""
        return next((rule.mode for rule in self._rules if matches(rule.pattern, path)), Mode.OFF)

    def check(self, ref: ModelRef, version: ModelVersion) -> SignedBy | None:
        """Whether ``version`` may be used for ``ref``; nothing of it must have been kept before.

        Returns:
            Who signed it; None where that was not asked, or only a warning follows from it.

        Raises:
            SignatureRefused: Signatures are required, and it has none that counts.
            IntegrityError: The server answered with a version of something else, or a manifest of another digest.
            ConfigError: A trusted file cannot be used.
        """
        _check_named(ref, version)
        mode = self.mode(ref.path)
        if mode is Mode.OFF:
            return None
        try:
            return self._trust.verify(version)
        except SignatureRefused as exc:
            if mode is Mode.REQUIRE:
                raise
            _log.warning("%s: used all the same, as signatures are not required: %s", ref, exc)
        return None


def _check_named(ref: ModelRef, version: ModelVersion) -> None:
    """That an answer is one to the question, whoever signed it."""
    named = f"{version.namespace}/{version.model}@{version.version}"
    if (
        (version.namespace, version.model) != (ref.namespace, ref.model)
        or (ref.version is not None and version.version != ref.version)
        or (ref.digest is not None and version.digest != ref.digest)
    ):
        raise IntegrityError(
            f"{Refusal.SUBJECT_MISMATCH}: asked for {ref}, the server answered with {named}",
            reason=str(Refusal.SUBJECT_MISMATCH),
            expected=str(ref),
            actual=named,
        )
    if version.manifest.digest != version.digest:
        raise IntegrityError(
            f"{named} is said to be {version.digest}, but its manifest is {version.manifest.digest}",
            expected=version.digest,
            actual=version.manifest.digest,
        )
