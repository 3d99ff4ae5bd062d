"""Signed versions: OpenSSF model signing, with keys or certificates, verified by who loads. See ``docs/signing.md``.

Needs the extra ``signing`` for anything but reading bundles.
"""

from __future__ import annotations

from modelbox.signing.bundle import MAX_BUNDLE_BYTES, Bundle, check_bundle
from modelbox.signing.keys import KeyFiles, SigningKey, create_key
from modelbox.signing.policy import Mode, ModeRule, SignaturePolicy, parse_modes, parse_trusted
from modelbox.signing.statement import Statement, read_statement, statement_of, subject_of
from modelbox.signing.trust import Refusal, SignedBy, Trust, TrustedFile, matches

__all__ = (
    "MAX_BUNDLE_BYTES",
    "Bundle",
    "KeyFiles",
    "Mode",
    "ModeRule",
    "Refusal",
    "SignaturePolicy",
    "SignedBy",
    "SigningKey",
    "Statement",
    "Trust",
    "TrustedFile",
    "check_bundle",
    "create_key",
    "matches",
    "parse_modes",
    "parse_trusted",
    "read_statement",
    "statement_of",
    "subject_of",
)
