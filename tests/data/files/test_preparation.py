"""How pictures are prepared: by name, by configuration, by keys; what nothing says is asked for."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from qcompiler.data.files.preparation import METHODS, Preparation, preparation
from qcompiler.errors import DataError, UsageError
from qcompiler.ir.signature import Inputs, Shape
from qcompiler.recipe.tables import PREPARATIONS, PreprocessTable
from tests.data.samples import F32


def made(shape: Shape, **table: Any) -> Preparation:
    return preparation(PreprocessTable(**{"method": "plain", **table}), {"x": (F32, shape)})


@pytest.mark.parametrize(
    ("shape", "layout", "channels", "size"),
    [
        (("n", 3, 32, 48), "nchw", 3, (32, 48)),
        ((1, 32, 48, 3), "nhwc", 3, (32, 48)),
        ((1, 1, 32, 48), "nchw", 1, (32, 48)),
        ((32, 48, 1), "nhwc", 1, (32, 48)),
        (("n", 3, "h", 48), "nchw", 3, (20, 48)),
        (("n", 3, "h", "w"), "nchw", 3, (20, 30)),
    ],
)
def test_layout_colours_and_size_are_read_off_the_model(
    shape: Shape, layout: str, channels: int, size: tuple[int, int]
) -> None:
    free = {"size": [20, 30]} if any(isinstance(one, str) for one in (shape or ())[-2:]) and shape != () else {}
    if shape is not None and shape[-1] == 48:
        free = {"size": [20, 48]} if shape[-2] == "h" else {}
    found = made(shape, **free)
    assert (found.layout, found.channels, found.size) == (layout, channels, size)
    assert found.batched is (shape is not None and len(shape) == 4)


@pytest.mark.parametrize(
    ("shape", "table", "words"),
    [
        (("n", 3, "h", "w"), {}, "takes pictures of any size, and nothing says which: give --picture-size"),
        (("n", "c", "h", "w"), {}, "does not say where its colours are: give layout"),
        (("n", 3, 32, 3), {}, "does not say where its colours are: give layout"),
        (None, {}, "does not say where its colours are"),
        (("n", 6, 32, 32), {"layout": "nchw"}, "6 colours are not those of a picture"),
        (("n", 1, 32, 32), {"method": "imagenet"}, "mean has 3 numbers, and the model takes 1 colour"),
        (("n", 16), {}, "models with one input of pictures, and this one takes 'x' [n, 16]"),
    ],
)
def test_what_nothing_says_is_asked_for(shape: Shape, table: dict[str, Any], words: str) -> None:
    with pytest.raises(DataError) as caught:
        made(shape, **table)
    assert words in str(caught.value)


def test_a_layout_that_is_told_is_taken() -> None:
    assert made(("n", 3, 32, 3), layout="nhwc").size == (3, 32)
    assert made(None, layout="nchw", size="16x24").size == (16, 24)


def test_a_size_that_the_model_does_not_take_is_refused() -> None:
    with pytest.raises(UsageError, match="--picture-size 16x16 does not fit input 'x', which takes 32x32"):
        made(("n", 3, 32, 32), size=16)


def test_several_inputs_need_a_function() -> None:
    inputs: Inputs = {"image": (F32, ("n", 3, 8, 8)), "scale": (F32, ("n", 2))}
    with pytest.raises(DataError, match=r"this one takes 'image' \[n, 3, 8, 8\], 'scale' \[n, 2\]: give --preprocess"):
        preparation(PreprocessTable("imagenet"), inputs)


def test_bytes_cannot_be_scaled() -> None:
    inputs: Inputs = {"x": (np.dtype(np.uint8), ("n", 8, 8, 3))}
    assert "bytes" in str(preparation(PreprocessTable("imagenet"), inputs))
    with pytest.raises(UsageError, match="takes bytes, so its pictures cannot be scaled"):
        preparation(PreprocessTable("plain", mean=(1.0, 1.0, 1.0)), inputs)


def test_keys_stand_over_the_method() -> None:
    found = made(("n", 3, 32, 32), method="imagenet", resize="stretch", keep=1.0, std=[1, 1, 1], interpolation="box")
    assert (found.resize, found.keep, found.std, found.interpolation) == ("stretch", 1.0, (1.0, 1.0, 1.0), "box")
    assert found.mean == METHODS["imagenet"]["mean"]


def test_colours_of_a_method_turn_with_the_pixels_and_those_of_the_user_do_not() -> None:
    turned = made(("n", 3, 8, 8), method="imagenet", colour="bgr", std=[1, 2, 3])
    assert turned.mean == tuple(reversed(METHODS["imagenet"]["mean"]))
    assert turned.std == (1.0, 2.0, 3.0)


def test_one_number_stands_for_all_colours_where_they_are_alike() -> None:
    assert made(("n", 1, 8, 8), mean=[0.5, 0.5, 0.5], std=0.25).mean == (0.5,)
    assert made(("n", 3, 8, 8), mean=0.5).mean == (0.5, 0.5, 0.5)


def test_every_method_is_one_of_the_recipe_s_and_says_what_it_does() -> None:
    assert tuple(METHODS) == PREPARATIONS
    lines = {str(made(("n", 3, 32, 32), method=name)) for name in METHODS}
    assert len(lines) == len(METHODS)
    assert "letterboxed with 114 to 32x32 (bilinear), RGB, times 0.00392157, NCHW" in lines
    json.dumps([made(("n", 3, 32, 32), method=name).to_json() for name in METHODS])


def test_a_configuration_beside_the_model_is_read(tmp_path: Path) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({"size": {"shortest_edge": 30}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}))
    with pytest.raises(DataError, match="keeps the proportions of every picture"):
        made(("n", 3, "h", "w"), method=str(path))
    found = made(("n", 3, "h", "w"), method=str(path), resize="letterbox")
    assert (found.size, found.std) == ((30, 30), (0.25, 0.25, 0.25))
