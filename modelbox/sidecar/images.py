"""Images as input: bytes of PNG or JPEG become the tensor that the model's metadata describes.

A version says so in its metadata::

    {"image": {"input": "pixels", "layout": "NCHW", "size": [224, 224], "color": "RGB",
               "scale": 0.00392156862745098, "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}}

and then that input may come as a BYTES tensor of encoded images, one row each; a value of the tensor is
``(pixel * scale - mean) / std``. Callers that send the tensor itself go on as ever.

Owns the description and the decoding. Needs Pillow (the ``images`` extra), imported on first use. Refuses other formats
than PNG and JPEG, and images with more pixels than the bound, before anything of them is decoded.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from modelbox.errors import ConfigError, InputError, InvalidError
from modelbox.refs import shown
from modelbox.signature import Signature

__all__ = ("ImageInput", "is_encoded", "read_image_input")

_FORMATS = ("PNG", "JPEG")
_MAX_PIXELS = 64_000_000
_CHANNELS = {"RGB": 3, "BGR": 3, "L": 1}
_KEYS = frozenset(["input", "layout", "size", "mean", "std", "scale", "color"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """How one input is made of images.

    Attributes:
        name: Of the input.
        dtype: Of its tensor; a whole-number type takes pixels as they are, without ``scale``, ``mean`` and ``std``.
        layout: ``NCHW`` or ``NHWC``.
        size: Height and width that images are resized to (bilinear); None keeps theirs, which then must all be equal.
        color: ``RGB``, ``BGR`` or ``L`` (one channel).
        scale: Factor for pixels from 0 to 255.
        mean: Per channel, after scaling; subtracted.
        std: Per channel; divided by.
    """

    name: str
    dtype: np.dtype[Any]
    layout: str
    size: tuple[int, int] | None
    color: str
    scale: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def decode(self, images: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """The tensor for encoded images; takes milliseconds, so call it in a thread.

        Args:
            images: ``(n,)`` or ``(n, 1)`` objects: bytes of a PNG or JPEG each.

        Raises:
            InputError: One is no such image, is too large, or they have different sizes.
            ConfigError: Pillow is not installed.
        """
        if images.ndim not in (1, 2) or images.size != images.shape[0] or not images.size:
            raise InputError(
                f"input {shown(self.name)} takes encoded images as BYTES of shape [n], got {list(images.shape)}"
            )
        arrays = [self._decode_one(item, row) for row, item in enumerate(images.flat)]
        if any(array.shape != arrays[0].shape for array in arrays):
            raise InputError(f"the images of input {shown(self.name)} have different sizes: send them one by one")
        batch = np.stack(arrays)
        if self.layout == "NCHW":
            batch = np.ascontiguousarray(batch.transpose(0, 3, 1, 2))
        return batch

    def _decode_one(self, item: object, row: int) -> np.ndarray[Any, Any]:
        try:
            from PIL import Image, UnidentifiedImageError
        except ImportError as exc:
            raise ConfigError("images as input need Pillow: pip install 'modelbox[images]'") from exc
        if not isinstance(item, bytes):
            raise InputError(f"image {row} of input {shown(self.name)} is text: expected the bytes of a PNG or JPEG")
        try:
            with Image.open(io.BytesIO(item), formats=_FORMATS) as image:
                width, height = image.size
                if width * height > _MAX_PIXELS:
                    raise InputError(
                        f"image {row} of input {shown(self.name)} has {width}x{height} pixels, more than {_MAX_PIXELS}"
                    )
                pixels = image.convert("L" if self.color == "L" else "RGB")
                if self.size is not None and (height, width) != self.size:
                    pixels = pixels.resize((self.size[1], self.size[0]), Image.Resampling.BILINEAR)
                array = np.asarray(pixels)
        except InputError:
            raise
        except UnidentifiedImageError as exc:
            raise InputError(f"image {row} of input {shown(self.name)} is neither PNG nor JPEG") from exc
        except Exception as exc:
            # Pillow has many ways to say that a file is broken: OSError, SyntaxError, ValueError, struct.error ...
            raise InputError(
                f"image {row} of input {shown(self.name)} cannot be decoded ({type(exc).__name__})"
            ) from exc
        if array.ndim == 2:
            array = array[:, :, np.newaxis]
        if self.color == "BGR":
            array = array[:, :, ::-1]
        if self.dtype.kind != "f":
            return array.astype(self.dtype)
        scaled = array.astype(np.float32) * np.float32(self.scale)
        scaled -= np.asarray(self.mean, dtype=np.float32)
        scaled /= np.asarray(self.std, dtype=np.float32)
        return scaled.astype(self.dtype, copy=False)


def is_encoded(value: object) -> bool:
    """Whether a value can only be encoded images: an array of bytes."""
    return isinstance(value, np.ndarray) and value.dtype.kind == "O"


def read_image_input(metadata: Mapping[str, Any], signature: Signature) -> ImageInput | None:
    """The description in a version's metadata; None where there is none.

    Raises:
        InvalidError: It cannot be followed; says why.
    """
    raw = metadata.get("image")
    if raw is None:
        return None
    if not isinstance(raw, Mapping):
        raise InvalidError("the metadata's image is no object")
    if unknown := sorted(set(raw) - _KEYS):
        raise InvalidError(f"the metadata's image has unknown keys: {', '.join(map(shown, unknown))}")
    specs = {spec.name: spec for spec in signature.inputs}
    name = raw.get("input", next(iter(specs)) if len(specs) == 1 else None)
    if name not in specs:
        raise InvalidError(f"the metadata's image is for {shown(name)}; the inputs are {', '.join(map(shown, specs))}")
    spec = specs[name]
    if spec.dtype not in ("uint8", "int8", "int16", "int32", "float16", "float32", "float64") or len(spec.shape) != 4:
        raise InvalidError(f"the metadata's image is for {spec}: expected four dimensions of numbers")
    layout, color = raw.get("layout", "NCHW"), raw.get("color", "RGB")
    if layout not in ("NCHW", "NHWC") or color not in _CHANNELS:
        raise InvalidError("the metadata's image has another layout than NCHW or NHWC, or color than RGB, BGR or L")
    channels = _CHANNELS[color]
    at = spec.shape[1 if layout == "NCHW" else 3]
    if isinstance(at, int) and at not in (-1, channels):
        raise InvalidError(f"the metadata's image says {color}, and {spec} has {at} channels as {layout}")
    height, width = spec.shape[2:] if layout == "NCHW" else spec.shape[1:3]
    size = raw.get("size")
    if size is None and isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0:
        size = [height, width]
    if size is not None and not (
        isinstance(size, list | tuple)
        and len(size) == 2
        and all(type(length) is int and 0 < length <= 16_384 for length in size)
    ):
        raise InvalidError(f"the metadata's image has the size {shown(size)}: expected [height, width]")
    return ImageInput(
        name=name,
        dtype=np.dtype(spec.dtype),
        layout=layout,
        size=(size[0], size[1]) if size is not None else None,
        color=color,
        scale=_numbers(raw.get("scale", 1.0), 1, "scale")[0],
        mean=_numbers(raw.get("mean", 0.0), channels, "mean"),
        std=_numbers(raw.get("std", 1.0), channels, "std", positive=True),
    )


def _numbers(value: object, count: int, key: str, *, positive: bool = False) -> tuple[float, ...]:
    """``count`` numbers; a single one stands for all."""
    values: list[Any] = list(value) if isinstance(value, list | tuple) else [value] * count
    kind = "positive numbers" if positive else "numbers"
    if len(values) != count or not all(
        isinstance(v, int | float) and not isinstance(v, bool) and (v > 0 or not positive) for v in values
    ):
        raise InvalidError(f"the metadata's image has {key} = {shown(value)}: expected {count} {kind}")
    return tuple(float(v) for v in values)
