"""Signatures over the wire: publishing under the number that was signed, and signing what is published already."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from anyio import to_thread

from modelbox._local_files import LocalFile
from modelbox._transport.source import RemoteSource
from modelbox.errors import ConflictError, IntegrityError, NotFoundError
from modelbox.objects import Created, ModelVersion, NewVersion, VersionPatch
from modelbox.refs import ModelRef
from modelbox.signing.keys import SigningKey
from modelbox.signing.policy import SignaturePolicy

__all__ = ("publish_signed", "sign_version")

_ATTEMPTS = 20


async def publish_signed(source: RemoteSource, new: NewVersion, key: SigningKey) -> Created[ModelVersion]:
    """Publishes with a signature.

    A signature names the version's number, and somebody else may publish meanwhile: then the version is signed again
    under the number that is next.

    Raises:
        ConflictError: Others were faster each time.
    """
    number = await _next_number(source, new.namespace, new.model)
    for attempt in range(_ATTEMPTS):
        bundle = await to_thread.run_sync(key.sign, new.namespace, new.model, number, new.manifest)
        try:
            created = await source.grpc.publish_version(replace(new, bundle=bundle, expected_version=number))
        except ConflictError as exc:
            current = exc.fields.get("current")
            other = current.get("version") if isinstance(current, Mapping) else None
            if not isinstance(other, int) or attempt == _ATTEMPTS - 1:
                raise
            number = other
            continue
        if await to_thread.run_sync(key.has_signed, created.item):
            return created
        # It was there, and somebody else's signature on it.
        return replace(created, item=await _sign(source, created.item, key))
    raise AssertionError("the last attempt returns or raises")


async def sign_version(
    source: RemoteSource, ref: ModelRef, key: SigningKey, files: tuple[LocalFile, ...] | None
) -> ModelVersion:
    """Signs a version that is there, after a comparison with local files where there are any.

    Raises:
        IntegrityError: It is not the version that was asked for, or its files are not these.
    """
    version = await source.grpc.get_version(ref)
    SignaturePolicy().check(ref, version)
    if files is not None:
        here = {file.path: file.digest for file in files}
        there = {file.path: file.digest for file in version.manifest.files}
        if differing := sorted(path for path in here.keys() | there.keys() if here.get(path) != there.get(path)):
            raise IntegrityError(
                f"{version.ref} does not have the files that are here: {', '.join(differing[:5])} differ",
                files=differing,
            )
    return await _sign(source, version, key)


async def _sign(source: RemoteSource, version: ModelVersion, key: SigningKey) -> ModelVersion:
    bundle = await to_thread.run_sync(key.sign, version.namespace, version.model, version.version, version.manifest)
    return await source.grpc.update_version(
        version.namespace, version.model, version.version, VersionPatch(bundle=bundle)
    )


async def _next_number(source: RemoteSource, namespace: str, model: str) -> int:
    """A guess; where it is wrong, the server says what is right."""
    try:
        return (await source.grpc.get_model(namespace, model)).latest_version + 1
    except NotFoundError:
        return 1
