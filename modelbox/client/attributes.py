"""Values by key on any object (parameters, tags, labels, metadata), as methods of the client."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence

from modelbox.client.connection import ClientConnection
from modelbox.objects import JsonValue
from modelbox.tracking import Attribute, AttributeChange, AttributeKind, AttributesEdit

__all__ = ("AttributeCalls",)


class AttributeCalls(ClientConnection):
    """The part of `Client` about values by key.

    ``object`` is an id, a namespace, ``namespace/model`` or ``namespace/model@7``. Every method raises `NotFoundError`
    where there is no such object, `InvalidError` and `LimitError` for keys and values that cannot be kept.
    """

    async def set_params(self, object: str, values: Mapping[str, JsonValue], *, overwrite: bool = False) -> None:
        """Sets hyperparameters, JSON by key.

        Args:
            object: What they belong to, usually a run.
            values: By key.
            overwrite: Whether one that is there may take another value.

        Raises:
            ConflictError: One has another value and ``overwrite`` is not set; then none is set.
        """
        await self._set(AttributesEdit(object=object, kind=AttributeKind.PARAM, values=values, overwrite=overwrite))

    async def set_tags(self, object: str, values: Mapping[str, str]) -> None:
        """Sets tags: what people and programs call an object, text by key, which may be empty."""
        await self._set(AttributesEdit(object=object, kind=AttributeKind.TAG, values=values))

    async def set_labels(self, object: str, values: Mapping[str, str]) -> None:
        """Sets labels: text by key that programs select by."""
        await self._set(AttributesEdit(object=object, kind=AttributeKind.LABEL, values=values))

    async def set_metadata(self, object: str, values: Mapping[str, JsonValue]) -> None:
        """Sets metadata, any JSON by key."""
        await self._set(AttributesEdit(object=object, kind=AttributeKind.METADATA, values=values))

    async def remove_attributes(self, object: str, kind: AttributeKind, keys: Sequence[str]) -> None:
        """Removes values of one kind; their history stays. Keys that are not there change nothing."""
        await self._set(AttributesEdit(object=object, kind=kind, remove=tuple(keys)))

    async def get_attributes(self, *objects: str, kinds: Sequence[AttributeKind] = ()) -> tuple[Attribute, ...]:
        """The values of objects, of these kinds or of all."""
        return await self._call(lambda source: source.tracking.get_attributes(objects, kinds))

    async def get_params(self, object: str) -> dict[str, JsonValue]:
        """The hyperparameters of an object."""
        return await self._values(object, AttributeKind.PARAM)

    async def get_tags(self, object: str) -> dict[str, str]:
        """The tags of an object."""
        return await self._values(object, AttributeKind.TAG)

    async def get_labels(self, object: str) -> dict[str, str]:
        """The labels of an object."""
        return await self._values(object, AttributeKind.LABEL)

    async def get_metadata(self, object: str) -> dict[str, JsonValue]:
        """The metadata of an object."""
        return await self._values(object, AttributeKind.METADATA)

    def iter_attribute_history(self, object: str, kind: AttributeKind, key: str = "") -> AsyncIterator[AttributeChange]:
        """Who set what when, newest first; of all keys for an empty one."""
        return self._pages(
            lambda source, token: source.tracking.list_attribute_history(object, kind, key, page_token=token)
        )

    async def _set(self, edit: AttributesEdit) -> None:
        await self._call(lambda source: source.tracking.set_attributes(edit))

    async def _values(self, object: str, kind: AttributeKind) -> dict[str, JsonValue]:
        found = await self._call(lambda source: source.tracking.get_attributes((object,), (kind,)))
        return {attribute.key: attribute.value for attribute in found}
