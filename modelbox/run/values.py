"""What a run keeps by key: hyperparameters, tags, labels, metadata."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from modelbox.errors import InvalidError, LimitError
from modelbox.objects import JsonValue
from modelbox.refs import shown
from modelbox.run.recording import Recording
from modelbox.spool.checks import MAX_KEYS, check_key, check_labels, json_text
from modelbox.spool.operations import attributes_data
from modelbox.tracking import AttributeKind

__all__ = ("RunValues",)

_ATTRIBUTES_BYTES = 256 << 10
"""Of values by key in one operation; more go into several."""


class RunValues(Recording):
    """The part of `modelbox.run.LiveRun` that sets values by key."""

    _params: dict[str, str]
    """Those that were logged, as JSON."""
    _keys: dict[AttributeKind, set[str]]
    """Those of each kind that were logged here."""

    def log_params(self, values: Mapping[str, JsonValue], *, overwrite: bool = False) -> None:
        """Records hyperparameters: any JSON by key; numpy and torch scalars, paths and enums count as what they say.

        Args:
            values: By key.
            overwrite: Whether one that has another value already may take this one.
        """
        texts: dict[str, str] = {}
        for key, value in values.items():
            with self._guarded(key):
                text = json_text(check_key(key), value)
                before = self._params.get(key)
                if before is not None and before != text and not overwrite:
                    raise InvalidError(
                        f"the parameter {shown(key)} is {before[:100]}: overwrite=True gives it another value"
                    )
                if before != text:
                    texts[key] = text
        # Those that found no room may be logged again.
        self._params.update(self._put_attributes(AttributeKind.PARAM, texts, overwrite=overwrite))

    def set_tags(self, values: Mapping[str, str] | Iterable[str]) -> None:
        """Sets tags: text by key, or only keys."""
        if not isinstance(values, Mapping):
            values = dict.fromkeys([values] if isinstance(values, str) else values, "")
        self._set_texts(AttributeKind.TAG, values)

    def set_labels(self, values: Mapping[str, str]) -> None:
        """Sets labels: text by key."""
        self._set_texts(AttributeKind.LABEL, values)

    def set_metadata(self, values: Mapping[str, JsonValue]) -> None:
        """Sets metadata: any JSON by key."""
        texts: dict[str, str] = {}
        for key, value in values.items():
            with self._guarded(key):
                texts[key] = json_text(check_key(key), value)
        self._put_attributes(AttributeKind.METADATA, texts)

    def _set_texts(self, kind: AttributeKind, values: Mapping[str, str]) -> None:
        texts: dict[str, str] = {}
        for key, value in values.items():
            with self._guarded(key):
                if kind is AttributeKind.LABEL or not isinstance(value, str):
                    check_labels({key: value})
                texts[key] = json_text(check_key(key), value)
        self._put_attributes(kind, texts)

    def _put_attributes(
        self, kind: AttributeKind, texts: Mapping[str, str], *, overwrite: bool = False
    ) -> dict[str, str]:
        """Records values that are JSON texts; returns those that found room."""
        kept: dict[str, str] = {}
        part: dict[str, str] = {}
        size = 0
        texts = self._with_room(kind, texts)
        for number, (key, text) in enumerate(texts.items(), 1):
            part[key] = text
            size += len(text)
            if size > _ATTRIBUTES_BYTES or number == len(texts):
                with self._guarded(key):
                    if self._put_data(attributes_data(self._id, kind, part, (), overwrite=overwrite)):
                        kept.update(part)
                        self._keys[kind].update(part)
                part, size = {}, 0
        return kept

    def _with_room(self, kind: AttributeKind, texts: Mapping[str, str]) -> Mapping[str, str]:
        """Those values for whose keys an object has room; each of the others would be refused by itself later."""
        known = self._keys[kind]
        if len(known) + len(texts) <= MAX_KEYS[kind]:
            return texts
        new = [key for key in texts if key not in known]
        over = frozenset(new[max(0, MAX_KEYS[kind] - len(known)) :])
        if not over:
            return texts
        error = LimitError(
            f"{len(over)} keys are beyond the {MAX_KEYS[kind]} of kind {kind.value} that a run may have, such as"
            f" {shown(min(over))}"
        )
        self._bad(f"{kind.value} keys", error, count=len(over))
        return {key: text for key, text in texts.items() if key not in over}
