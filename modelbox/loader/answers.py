"""Whether what a server says of a reference can be true.

Pure. A server that is broken, was taken over, or is another one than it was may answer anything; what contradicts
itself or was not asked for is refused here, before it can push out what is right. Bytes are `verify`'s, signatures a
policy's. What is told here is not that an answer is right, only that it is not plainly wrong.
"""

from __future__ import annotations

from modelbox.errors import InvalidError, ProtocolError
from modelbox.feed import ResumeToken
from modelbox.objects import Resolved
from modelbox.refs import ModelRef

__all__ = ("MAX_LEAP", "check_answer", "check_leap", "same_history")

MAX_LEAP = 10**9
"""No history grows by more revisions between two looks of one loader: that is a thousand a second for eleven days."""


def check_answer(ref: ModelRef, resolved: Resolved, known: ResumeToken | None = None) -> None:
    """Refuses an answer to ``ref`` that is about something else, or does not agree with itself.

    Args:
        ref: What was asked.
        resolved: The answer.
        known: How far the server's history was known to be.

    Raises:
        ProtocolError: It cannot be true.
    """
    version, alias = resolved.version, resolved.alias
    problems = []
    if (version.namespace, version.model) != (ref.namespace, ref.model):
        problems.append(f"the version is of {version.namespace}/{version.model}")
    if version.manifest.digest != version.digest:
        problems.append(f"the version is said to be {version.digest}, and its manifest is {version.manifest.digest}")
    if ref.version is not None and version.version != ref.version:
        problems.append(f"it is version {version.version}")
    if ref.digest is not None and version.digest != ref.digest:
        problems.append(f"it is {version.digest}")
    if ref.alias is not None:
        if alias is None:
            problems.append("it names no alias")
        elif (alias.namespace, alias.model, alias.name) != (ref.namespace, ref.model, ref.alias):
            problems.append(f"it is about {alias.namespace}/{alias.model}@{alias.name}")
        elif (alias.version, alias.digest) != (version.version, version.digest):
            problems.append(
                f"the alias points to version {alias.version} ({alias.digest}), "
                f"and version {version.version} ({version.digest}) came"
            )
    if resolved.token:
        token = _token(resolved.token)
        if alias is not None and alias.mod_rev > token.rev:
            problems.append(f"the alias was moved at revision {alias.mod_rev}, after the last one, {token.rev}")
        check_leap(token, known)
    if problems:
        raise ProtocolError(f"the server's answer for {ref} cannot be true: {'; '.join(problems)}")


def check_leap(token: ResumeToken, known: ResumeToken | None) -> None:
    """Refuses a place in history that is too far ahead of what is known of the same history.

    One answer with a revision out of thin air would make everything that is true look old.

    Raises:
        ProtocolError: It is.
    """
    if known is not None and same_history(token, known) and token.rev - known.rev > MAX_LEAP:
        raise ProtocolError(f"the server's history leapt from revision {known.rev} to {token.rev}")


def same_history(one: ResumeToken, other: ResumeToken) -> bool:
    """Whether revisions of both can be compared."""
    return (one.server_id, one.epoch) == (other.server_id, other.epoch)


def _token(text: str) -> ResumeToken:
    try:
        return ResumeToken.parse(text)
    except InvalidError as exc:
        raise ProtocolError(f"the server sent a resume token that is none: {exc}") from exc
