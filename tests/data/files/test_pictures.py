"""Pictures become what the model reads, to the pixel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qcompiler.data.files.pictures import feed_of
from qcompiler.data.files.preparation import preparation
from qcompiler.errors import DataError
from qcompiler.ir.signature import Array, Inputs
from qcompiler.recipe.tables import PreprocessTable
from tests.data.samples import F32

NCHW: Inputs = {"x": (F32, ("n", 3, 8, 8))}
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (8, 8, 3)).astype(np.uint8)


def saved(folder: Path, picture: Any = PIXELS, name: str = "a.png", **options: Any) -> Path:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    image.save(folder / name, **options)
    return folder / name


def read(path: Path, inputs: Inputs = NCHW, **table: Any) -> Array:
    return feed_of(path, preparation(PreprocessTable(**{"method": "plain", **table}), inputs))["x"]


def test_a_picture_of_the_right_size_keeps_its_pixels(tmp_path: Path) -> None:
    path = saved(tmp_path)
    expected = (PIXELS / 255).astype(np.float32).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(read(path), expected, atol=1e-7)
    np.testing.assert_allclose(read(path, {"x": (F32, (1, 8, 8, 3))}), expected.transpose(0, 2, 3, 1), atol=1e-7)
    np.testing.assert_allclose(read(path, {"x": (F32, (3, 8, 8))}), expected[0], atol=1e-7)
    np.testing.assert_allclose(read(path, colour="bgr"), expected[:, ::-1], atol=1e-7)


def test_scale_mean_and_deviation_come_in_that_order(tmp_path: Path) -> None:
    path = saved(tmp_path)
    found = read(path, scale=2.0, mean=[1.0, 2.0, 3.0], std=[4.0, 5.0, 6.0])
    expected = ((PIXELS * 2.0 - [1, 2, 3]) / [4, 5, 6]).transpose(2, 0, 1)[None]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_bytes_stay_bytes_for_a_model_that_takes_them(tmp_path: Path) -> None:
    found = read(saved(tmp_path), {"x": (np.dtype(np.uint8), ("n", 8, 8, 3))}, method="imagenet", keep=1.0)
    np.testing.assert_array_equal(found, PIXELS[None], strict=True)


def test_halves_are_prepared_in_single_precision(tmp_path: Path) -> None:
    found = read(saved(tmp_path), {"x": (np.dtype(np.float16), ("n", 3, 8, 8))})
    np.testing.assert_array_equal(found, read(saved(tmp_path)).astype(np.float16), strict=True)


def test_imagenet_is_what_torchvision_does(tmp_path: Path) -> None:
    image = Image.fromarray(RNG.integers(0, 256, (300, 401, 3)).astype(np.uint8))
    inner = image.resize((int(256 * 401 / 300), 256), Image.Resampling.BILINEAR)  # Resize(256)
    left, top = round((inner.width - 224) / 2.0), round((256 - 224) / 2.0)  # CenterCrop(224)
    pixels = np.asarray(inner.crop((left, top, left + 224, top + 224))) / 255
    expected = ((pixels - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]).transpose(2, 0, 1)[None]
    found = read(saved(tmp_path, image), {"x": (F32, ("n", 3, 224, 224))}, method="imagenet")
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_a_letterbox_has_the_whole_picture_in_its_middle(tmp_path: Path) -> None:
    found = read(saved(tmp_path, np.full((4, 8, 3), 255, np.uint8)), {"x": (F32, ("n", 3, 16, 16))}, method="yolo")[0]
    assert np.allclose(found[:, 4:12], 1.0)
    assert np.allclose(found[:, [0, 3, 12, 15]], 114 / 255)


@pytest.mark.parametrize(
    "picture",
    [
        Image.fromarray(PIXELS).convert("CMYK"),
        Image.fromarray(PIXELS[..., 0]),
        Image.fromarray(np.dstack([PIXELS, np.full((8, 8), 200, np.uint8)])),
        Image.fromarray(PIXELS).convert("P"),
        Image.fromarray(PIXELS[..., 0]).convert("LA"),
        Image.fromarray(PIXELS[..., 0] > 127),
    ],
    ids=["cmyk", "grey", "alpha", "palette", "grey-alpha", "bits"],
)
def test_every_kind_of_colour_becomes_three(tmp_path: Path, picture: Image.Image) -> None:
    name = "a.tif" if picture.mode == "CMYK" else "a.png"
    found = read(saved(tmp_path, picture, name))
    expected = np.asarray(picture.convert("RGB")) / 255
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), expected, atol=1e-6)


def test_sixteen_bits_become_eight(tmp_path: Path) -> None:
    grey: Inputs = {"x": (F32, ("n", 1, 8, 8))}
    deep = Image.fromarray(np.full((8, 8), 65535 // 2, np.uint16))
    np.testing.assert_allclose(read(saved(tmp_path, deep), grey), 127 / 255, atol=1e-6)
    with pytest.raises(DataError, match="numbers of 32 bits"):
        read(saved(tmp_path, Image.fromarray(np.full((8, 8), 0.5, np.float32)), "a.tif"), grey)


def test_a_picture_stands_as_its_exif_says(tmp_path: Path) -> None:
    image = Image.fromarray(PIXELS)
    exif = image.getexif()
    exif[0x0112] = 3  # turned by half
    found = read(saved(tmp_path, image, exif=exif))
    np.testing.assert_allclose(found[0].transpose(1, 2, 0), PIXELS[::-1, ::-1] / 255, atol=1e-6)


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n"])
def test_a_damaged_picture_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "bad.png").write_bytes(content)
    with pytest.raises(DataError, match=r"picture '.*bad\.png' cannot be read"):
        read(tmp_path / "bad.png")


def test_a_picture_that_ends_too_early_is_named(tmp_path: Path) -> None:
    path = saved(tmp_path, RNG.integers(0, 256, (64, 64, 3)).astype(np.uint8), "a.jpg")
    path.write_bytes(path.read_bytes()[:-900])
    with pytest.raises(DataError, match=r"picture '.*a\.jpg' cannot be read"):
        read(path)


@pytest.mark.parametrize("size", [(3, 200), (200, 3), (1, 1)])
@pytest.mark.parametrize("resize", ["crop", "letterbox", "stretch"])
def test_every_shape_of_picture_gets_the_model_s_size(tmp_path: Path, size: tuple[int, int], resize: str) -> None:
    path = saved(tmp_path, np.full((*size, 3), 255, np.uint8))
    found = read(path, {"x": (F32, ("n", 3, 6, 10))}, resize=resize, keep=0.9, fill=255)
    assert found.shape == (1, 3, 6, 10)
    np.testing.assert_allclose(found, 1.0, atol=1e-6)


@pytest.mark.parametrize("size", [(1, 30_000), (30_000, 1)])
def test_a_strip_is_refused_before_it_takes_all_memory(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "strip.png")
    how = preparation(PreprocessTable("imagenet", (224, 224)), {"x": (F32, (None, 3, None, None))})
    with pytest.raises(DataError, match=r"strip.png' is .*letterbox"):
        feed_of(tmp_path / "strip.png", how)


def test_whatever_a_reader_raises_names_the_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(_: Any) -> None:
        raise KeyError(274)

    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    monkeypatch.setattr("PIL.ImageOps.exif_transpose", damaged)
    how = preparation(PreprocessTable("plain", (8, 8)), {"x": (F32, (None, 3, None, None))})
    with pytest.raises(DataError, match="a.png' cannot be read"):
        feed_of(tmp_path / "a.png", how)
