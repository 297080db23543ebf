"""Pictures and known ranges on the command line: which recipe the options make, and what is found beside the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from qcompiler.cli.main import main
from qcompiler.recipe.tables import PreprocessTable

Call = dict[str, Any]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A model's folder with a configuration in it, and one with a picture."""
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "pictures" / "a.png")
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"size": 4}))
    return tmp_path


def made(calls: list[Call], *line: str) -> PreprocessTable:
    assert main(["quantize", *line]) == 0
    found = calls.pop()["recipe"].preprocess
    assert isinstance(found, PreprocessTable)
    return found


def test_options_become_keys_of_the_table(calls: list[Call]) -> None:
    found = made(calls, "m.onnx", "--data", "d", "--preprocess", "yolo", "--picture-size", "480x640")
    assert found == PreprocessTable("yolo", (480, 640))


def test_a_configuration_beside_the_model_is_taken_for_pictures_alone(calls: list[Call], folder: Path) -> None:
    config = (folder / "preprocessor_config.json").as_posix()
    model, pictures = str(folder / "m.onnx"), str(folder / "pictures")
    assert made(calls, model, "--data", pictures) == PreprocessTable(config)
    assert made(calls, model, "--data", "d.npz", "--verify-data", pictures) == PreprocessTable(config)
    assert made(calls, str(folder), "--data", pictures) == PreprocessTable(config)
    assert made(calls, model, "--data", "d.npz") == PreprocessTable()
    assert made(calls, model, "--data", pictures, "--preprocess", "clip") == PreprocessTable("clip")


def test_ranges_are_a_key_of_the_recipe(calls: list[Call]) -> None:
    assert main(["compile", "m.onnx", "--ranges", "calib.cache"]) == 0
    (call,) = calls
    assert (call["recipe"].ranges, call["data"]) == ("calib.cache", None)


def test_a_misspelt_preparation_is_guessed(calls: list[Call], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "m.onnx", "--data", "d", "--preprocess", "imagnet"]) == 2
    assert "did you mean 'imagenet'?" in capfd.readouterr().err
    assert not calls
