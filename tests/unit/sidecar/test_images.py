"""Encoded images as input: what the metadata may say, what is decoded, what is refused."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from modelbox.errors import InputError, InvalidError
from modelbox.sidecar.images import ImageInput, is_encoded, read_image_input
from modelbox.signature import Signature, TensorSpec


def signature(dtype: str = "float32", shape: tuple[int | str, ...] = ("n", 3, 4, 6)) -> Signature:
    return Signature(inputs=(TensorSpec(name="pixels", dtype=dtype, shape=shape),), outputs=())


def described(image: object, **kwargs: Any) -> ImageInput:
    found = read_image_input({"image": image}, signature(**kwargs))
    assert found is not None
    return found


def encoded(array: np.ndarray[Any, Any], form: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, form)
    return file.getvalue()


def batch(*items: object) -> np.ndarray[Any, Any]:
    array = np.empty(len(items), object)
    array[:] = items
    return array


PIXELS = np.random.default_rng(1).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_pixels_come_out_as_the_metadata_describes() -> None:
    image = described({"input": "pixels", "scale": 1 / 255, "mean": [0.5, 0.4, 0.3], "std": [0.1, 0.2, 0.3]})
    out = image.decode(batch(encoded(PIXELS)))
    expected = (PIXELS.astype(np.float32) / 255 - [0.5, 0.4, 0.3]) / [0.1, 0.2, 0.3]
    assert out.shape == (1, 3, 4, 6)
    assert out.dtype == np.float32
    assert out.flags.c_contiguous
    np.testing.assert_allclose(out[0].transpose(1, 2, 0), expected, rtol=1e-4, atol=1e-5)


def test_nhwc_bgr_and_whole_numbers() -> None:
    image = described({"layout": "NHWC", "color": "BGR"}, dtype="uint8", shape=("n", "h", "w", 3))
    out = image.decode(batch(encoded(PIXELS), encoded(PIXELS[::-1])))
    assert out.shape == (2, 4, 6, 3)
    assert out.dtype == np.uint8
    np.testing.assert_array_equal(out[0], PIXELS[:, :, ::-1])


def test_images_are_resized_to_the_size_of_the_input() -> None:
    big = np.full((40, 60, 3), 7, np.uint8)
    assert described({}).decode(batch(encoded(big, "JPEG"))).shape == (1, 3, 4, 6)
    free = described({"size": [10, 12]}, shape=("n", 3, "h", "w"))
    assert free.decode(batch(encoded(big))).shape == (1, 3, 10, 12)


def test_gray_alpha_and_palette_become_what_the_model_takes() -> None:
    gray = described({"color": "L"}, shape=("n", 1, 4, 6))
    assert gray.decode(batch(encoded(PIXELS))).shape == (1, 1, 4, 6)
    alpha = np.dstack([PIXELS, np.full((4, 6), 128, np.uint8)])
    np.testing.assert_array_equal(
        described({}).decode(batch(encoded(alpha)))[0], PIXELS.transpose(2, 0, 1).astype(np.float32)
    )


@pytest.mark.parametrize(
    "items",
    [
        ["text"],
        [b""],
        [b"GIF89a" + bytes(50)],
        [encoded(PIXELS)[:60]],
        [encoded(PIXELS), b"nothing"],
        [],
    ],
    ids=["text", "empty", "gif", "truncated", "one of two", "none"],
)
def test_what_is_no_image_is_refused_by_name(items: list[object]) -> None:
    with pytest.raises(InputError, match="pixels"):
        described({}).decode(batch(*items))


@given(st.binary(max_size=200))
def test_garbage_behind_a_signature_is_an_input_error(tail: bytes) -> None:
    for head in (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", encoded(PIXELS)[:40]):
        with pytest.raises(InputError):
            described({}).decode(batch(head + tail))


def test_a_bomb_is_refused_before_it_is_decoded() -> None:
    file = io.BytesIO()
    Image.new("1", (20_000, 20_000)).save(file, "PNG")
    with pytest.raises(InputError):
        described({}).decode(batch(file.getvalue()))


def test_images_of_several_sizes_do_not_make_a_batch() -> None:
    free = described({}, shape=("n", 3, "h", "w"))
    with pytest.raises(InputError, match="different sizes"):
        free.decode(batch(encoded(PIXELS), encoded(PIXELS[:2])))


def test_a_model_without_the_description_takes_no_images() -> None:
    assert read_image_input({}, signature()) is None


@pytest.mark.parametrize(
    ("image", "kwargs"),
    [
        ("yes", {}),
        ({"colour": "RGB"}, {}),
        ({"input": "other"}, {}),
        ({"layout": "CHWN"}, {}),
        ({"color": "CMYK"}, {}),
        ({"color": "L"}, {}),
        ({"size": [0, 4]}, {}),
        ({"size": "large"}, {}),
        ({"mean": [1, 2]}, {}),
        ({"std": 0}, {}),
        ({"scale": "x"}, {}),
        ({}, {"dtype": "string"}),
        ({}, {"shape": ("n", 12)}),
    ],
)
def test_a_description_that_cannot_be_followed_says_why(image: object, kwargs: dict[str, Any]) -> None:
    with pytest.raises(InvalidError, match="image"):
        read_image_input({"image": image}, signature(**kwargs))


def test_tensors_are_told_from_encoded_images() -> None:
    assert is_encoded(batch(b"x"))
    assert not is_encoded(PIXELS)
    assert not is_encoded([b"x"])
