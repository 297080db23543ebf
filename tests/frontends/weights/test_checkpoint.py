"""What lies in a folder is read as transformers reads it, and what it says of itself is seen."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from qcompiler.errors import ModelError
from qcompiler.frontends.weights.checkpoint import Declared, read
from tests.kit.frontends.checkpoints import describe, fp8_tensor, quantize, shard


def test_tensors_have_the_types_and_shapes_of_the_file(folder: Path) -> None:
    quantize(folder, fp8_tensor, only="up_proj.weight")
    found = read(folder, {})
    stored = load_file(folder / "model.safetensors")
    assert {name: one.shape for name, one in found.tensors.items()} == {k: tuple(v.shape) for k, v in stored.items()}
    assert found.tensors["model.layers.0.mlp.up_proj.weight"].dtype == "F8_E4M3"
    assert found.tensors["model.layers.0.mlp.up_proj.weight_scale"].shape == ()
    assert found.tensors["model.norm.weight"].dtype == "F32"
    assert found.origins().keys() == found.tensors.keys()
    for name, one in found.origins().items():
        assert torch.equal(one.read().float(), stored[name].float())
        assert one.shape == tuple(stored[name].shape)


def test_one_file_goes_before_the_parts_of_an_index(folder: Path) -> None:
    whole = (folder / "model.safetensors").read_bytes()
    shard(folder, 3)
    parts = read(folder, {})
    assert [file.name for file in parts.files] == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    (folder / "model.safetensors").write_bytes(whole)
    assert [file.name for file in read(folder, {}).files] == ["model.safetensors"]
    assert read(folder, {}).tensors.keys() == parts.tensors.keys()


def test_parts_that_are_missing_or_lack_a_tensor_are_named(folder: Path) -> None:
    shard(folder)
    lost = folder / "model-00002-of-00002.safetensors"
    content = lost.read_bytes()
    lost.unlink()
    with pytest.raises(ModelError, match=r"names 'model-00002-of-00002.safetensors', which is not in the folder"):
        read(folder, {})
    lost.write_bytes((folder / "model-00001-of-00002.safetensors").read_bytes())
    with pytest.raises(ModelError, match=r"lacks 'model.*' and 9 other tensors"):
        read(folder, {})
    lost.write_bytes(content)
    assert read(folder, {}).tensors
    (folder / "model.safetensors.index.json").write_text('{"weight_map": 3}')
    with pytest.raises(ModelError, match="is no index of weights"):
        read(folder, {})


def test_weights_of_another_name_are_not_taken_for_the_model(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "tower.safetensors")
    with pytest.raises(ModelError, match=r"holds tower.safetensors, and neither model.safetensors nor model.saf"):
        read(folder, {})
    assert [file.name for file in read(folder, {"transformers_weights": "tower.safetensors"}).files] == [
        "tower.safetensors"
    ]


def test_quantizations_are_seen_wherever_they_are_described(folder: Path) -> None:
    describe(folder, "hf_quant_config.json", producer={"name": "modelopt"}, quantization={"quant_algo": "FP8"})
    describe(folder, "quantize_config.json", bits=4, group_size=128)
    config = {
        "text_config": {"quantization_config": {"quant_method": "fp8"}},
        "compression_config": {"format": "float-quantized"},
    }
    assert read(folder, config).declared == (
        Declared("config.json", "fp8", {"quant_method": "fp8"}),
        Declared("config.json", "compressed-tensors", {"format": "float-quantized"}),
        Declared("hf_quant_config.json", "modelopt", {"quant_algo": "FP8"}),
        Declared("quantize_config.json", "gptq", {"bits": 4, "group_size": 128}),
    )
    (folder / "hf_quant_config.json").write_text("[")
    with pytest.raises(ModelError, match="hf_quant_config.json' cannot be read as JSON"):
        read(folder, {})
