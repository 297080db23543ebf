"""Which inputs a model has, and which sizes they can have: by its class, its configuration, and its folder."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.errors import ModelError
from qcompiler.frontends.examples import inputs_of, picture
from qcompiler.frontends.sources import LoadedModule
from tests.kit.architectures import MODELS, Exports


class Config:
    """A configuration with some keys."""

    def __init__(self, **keys: Any) -> None:
        self.__dict__.update(keys)


def loaded(config: Config, preprocessor: dict[str, Any] | None = None, main: str = "pixel_values") -> LoadedModule:
    class Model:
        main_input_name = main

        def forward(self, pixel_values: Any = None, input_values: Any = None, input_features: Any = None) -> Any:
            """Never called."""

    model: Any = Model()
    model.config = config
    return LoadedModule(model, "folder", preprocessor=preprocessor or {})


@pytest.mark.parametrize(
    ("config", "preprocessor", "size"),
    [
        (Config(image_size=48), {"size": {"height": 9, "width": 9}}, (3, 48, 48)),
        (Config(image_size=[32, 64], num_channels=1), {}, (1, 32, 64)),
        (Config(vision_config=Config(image_size=56)), {}, (3, 56, 56)),
        (Config(), {"size": {"height": 40, "width": 60}}, (3, 40, 60)),
        (Config(), {"size": {"shortest_edge": 50, "longest_edge": 80}}, (3, 50, 80)),
        (Config(), {"size": 30, "crop_size": {"height": 20, "width": 20}, "do_center_crop": True}, (3, 20, 20)),
        (Config(), {"size": 30, "crop_size": {"height": 20, "width": 20}}, (3, 30, 30)),
        (Config(image_size=16, num_frames=4), {}, (4, 3, 16, 16)),
        (Config(), {}, (3, 224, 224)),
    ],
)
def test_pictures_are_as_large_as_the_folder_says(config: Any, preprocessor: Any, size: tuple[int, ...]) -> None:
    assert picture(loaded(config, preprocessor)) == size


def test_a_size_that_nobody_says_is_told() -> None:
    assert any("224 x 224 is taken" in note for note in inputs_of(loaded(Config())).notes)
    assert not any("is taken" in note for note in inputs_of(loaded(Config(image_size=8))).notes)


@pytest.mark.parametrize(
    ("main", "config", "shape", "free"),
    [
        ("input_values", Config(conv_kernel=[10, 3], conv_stride=[5, 2]), (2, (3 * 2 - 2 + 3 - 1) * 5 + 10), True),
        ("input_values", Config(num_mel_bins=8, max_length=32), (2, 32, 8), False),
        ("input_features", Config(num_mel_bins=8, max_source_positions=12), (2, 8, 24), False),
        ("input_features", Config(feature_projection_input_dim=16), (2, 12, 16), True),
        ("input_features", Config(input_feat_per_channel=10, input_channels=2), (2, 12, 20), True),
    ],
)
def test_sounds_are_as_long_as_the_model_can_take(main: str, config: Any, shape: tuple[int, ...], free: bool) -> None:
    inputs = inputs_of(loaded(config, main=main))
    assert inputs.example(2, 3).feeds[main].shape == shape
    assert inputs.axes[main] == ({0: "batch", 1: "time"} if free else {0: "batch"})


def test_a_sound_whose_size_nobody_says_is_refused() -> None:
    with pytest.raises(ModelError, match=r"does not say the size of 'input_features'.*file.py:build"):
        inputs_of(loaded(Config(), main="input_features")).example(1, 1)


def test_an_input_that_is_not_known_is_refused() -> None:
    model = loaded(Config(), main="point_cloud")
    model.module.forward = lambda point_cloud: None
    with pytest.raises(ModelError, match=r"reads 'point_cloud', which is not known.*file.py:build"):
        inputs_of(model)


def test_tokens_are_padded_at_the_end_of_the_first_row() -> None:
    inputs = inputs_of(LoadedModule(MODELS["bert"](), "bert"))
    example = inputs.example(2, 6, 2)
    assert example.mask[0].tolist() == [1, 1, 1, 1, 0, 0]
    assert example.feeds["input_ids"][0, 4:].tolist() == [0, 0]
    assert inputs.one_by_one().example(5, 6).feeds["input_ids"].shape == (1, 6)


def test_a_mask_of_sound_is_an_input_where_the_folder_makes_one() -> None:
    model = LoadedModule(MODELS["wav2vec2"](), "speech")
    assert inputs_of(model).names == ("input_values",)
    masked = replace(model, preprocessor={"return_attention_mask": True})
    assert inputs_of(masked).names == ("input_values", "attention_mask")


def test_models_of_sound_and_detectors_are_exported(exports: Exports) -> None:
    from qcompiler.runtime.session import Session

    model, made = exports("wav2vec2")
    assert made.inputs["model.onnx"] == {"input_values": ("batch", "time")}
    wave = np.random.default_rng(0).normal(size=(2, 333)).astype(np.float32)
    with torch.no_grad():
        want = model(torch.from_numpy(wave)).logits.numpy()
    np.testing.assert_allclose(Session(made.path).run({"input_values": wave})["logits"], want, atol=1e-3)
    made = exports("detr")[1]
    assert made.inputs["model.onnx"] == {"pixel_values": ("batch", 3, 224, 224)}
    assert {"logits", "pred_boxes"} <= set(made.outputs["model.onnx"])
