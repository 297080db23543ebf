"""Configurations of Hugging Face, in the words of the recipe."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from qcompiler.data.files.config import of_config
from qcompiler.errors import DataError

MEAN = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}


def keys(folder: Path, found: Any) -> dict[str, Any]:
    (folder / "preprocessor_config.json").write_text(found if isinstance(found, str) else json.dumps(found))
    return of_config(folder / "preprocessor_config.json")


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (  # ViT
            {"size": {"height": 224, "width": 224}, "do_normalize": True, "resample": 2, **MEAN},
            {"size": (224, 224), "resize": "stretch", "interpolation": "bilinear", "mean": (0.5, 0.5, 0.5)},
        ),
        (  # CLIP
            {
                "size": {"shortest_edge": 224},
                "do_center_crop": True,
                "crop_size": {"height": 224, "width": 224},
                "resample": 3,
            },
            {"size": (224, 224), "resize": "crop", "keep": 1.0, "interpolation": "bicubic"},
        ),
        ({"size": 256, "crop_size": 224, "do_center_crop": True}, {"size": (224, 224), "keep": 0.875}),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, {"size": (224, 224), "resize": "crop", "keep": 0.875}),
        ({"size": {"shortest_edge": 384}, "crop_pct": 0.875}, {"size": (384, 384), "resize": "stretch", "keep": 1.0}),
        ({"size": 8, "do_rescale": False}, {"scale": 1.0}),
        ({"size": 8, "rescale_factor": 0.5}, {"scale": 0.5}),
        ({"size": 8, "do_flip_channel_order": True}, {"colour": "bgr"}),
        ({"do_resize": False, "do_center_crop": True, "crop_size": 9, "size": 8}, {"size": (9, 9), "resize": "crop"}),
        ({"sampling_rate": 16000, "feature_size": 1, "do_normalize": True}, {"rate": 16000, "normalize": True}),
    ],
)
def test_a_configuration_becomes_keys_of_the_recipe(
    tmp_path: Path, found: dict[str, Any], expected: dict[str, Any]
) -> None:
    assert keys(tmp_path, found).items() >= expected.items()


def test_pictures_that_keep_their_proportions_have_no_way_to_be_resized(tmp_path: Path) -> None:
    assert "resize" not in keys(tmp_path, {"size": {"shortest_edge": 800, "longest_edge": 1333}})


def test_what_is_not_normalized_has_no_mean(tmp_path: Path) -> None:
    assert "mean" not in keys(tmp_path, {"size": 8, "do_normalize": False, **MEAN})


@pytest.mark.parametrize(
    ("found", "words"),
    [
        ("{", "cannot be read"),
        ("[]", "holds no keys"),
        ({"tokenizer": 1}, "says nothing of pictures or sounds"),
        ({"size": {"max_pixels": 9}}, "is not understood here"),
        ({"size": 8, "rescale_offset": True}, "rescale_offset"),
        ({"sampling_rate": 16000, "feature_size": 80}, "makes spectra of sounds"),
    ],
)
def test_what_cannot_be_done_is_said(tmp_path: Path, found: Any, words: str) -> None:
    with pytest.raises(DataError, match=words):
        keys(tmp_path, found)


def test_a_configuration_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"none\.json' cannot be read"):
        of_config(tmp_path / "none.json")


@pytest.mark.parametrize(
    "found",
    [
        {"size": {"height": None, "width": 3}},
        {"size": 0, "crop_size": 0, "do_center_crop": True},
        {"size": {"height": -1, "width": 3}},
        {"size": 224, "image_mean": "x"},
        {"size": 224, "image_mean": [None]},
        {"size": 224, "rescale_factor": None},
        {"size": 224, "crop_pct": "much"},
        {"sampling_rate": "x"},
        {"sampling_rate": None},
    ],
)
def test_a_value_of_another_kind_is_refused_with_the_file(tmp_path: Path, found: Any) -> None:
    with pytest.raises(DataError, match="has a value that cannot be used"):
        keys(tmp_path, found)
