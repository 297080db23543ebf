"""Quantized checkpoints become the float weights that they mean, to the last bit, or are refused by what they hold."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qcompiler.errors import ModelError
from qcompiler.frontends.export import export
from qcompiler.frontends.sources import load
from qcompiler.frontends.weights import reserve as reserves
from qcompiler.frontends.weights.checkpoint import read
from qcompiler.frontends.weights.dequantize import weights
from qcompiler.runtime.session import Session
from tests.kit.architectures import MODELS
from tests.kit.frontends import checkpoints
from tests.kit.frontends.checkpoints import change, describe, quantize, shard

Q = "model.layers.0.self_attn.q_proj"


def group(**weights: Any) -> dict[str, Any]:
    return {"config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}}


def compressed(layout: str, **weights: Any) -> dict[str, Any]:
    return {"quant_method": "compressed-tensors", "format": layout, **group(**weights)}


FORMATS: dict[str, tuple[checkpoints.Quantize, dict[str, Any]]] = {
    "FP8, a scale per tensor": (checkpoints.fp8_tensor, {"quant_method": "modelopt", "quant_algo": "FP8"}),
    "FP8, a scale per row": (checkpoints.fp8_channel, compressed("float-quantized", strategy="channel")),
    "FP8, a scale per block": (checkpoints.fp8_block, {"quant_method": "fp8", "weight_block_size": [20, 16]}),
    "FP8, a scale per block, in groups": (
        checkpoints.fp8_block,
        compressed("naive-quantized", strategy="block", block_structure=[20, 16]),
    ),
    "INT8 with zero points": (checkpoints.int8_channel, compressed("int-quantized", strategy="channel")),
    "INT4 in words": (checkpoints.int4_packed, compressed("pack-quantized", strategy="group", group_size=16)),
}


def only(folder: Path, stored: dict[str, Any]) -> None:
    """A checkpoint of these tensors and no others."""

    def edit(tensors: dict[str, Any]) -> None:
        tensors.clear()
        tensors.update(stored)

    change(folder, edit)


def loaded(folder: Path) -> Any:
    return load(folder, inputs=None, axes=None, trust_remote_code=False)


@pytest.mark.parametrize("name", FORMATS)
def test_a_folder_has_the_weights_that_its_scales_mean(name: str, folder: Path) -> None:
    how, config = FORMATS[name]
    right = quantize(folder, how)
    describe(folder, quantization_config=config)
    found = loaded(folder)
    got = found.module.state_dict()
    assert got.keys() == right.keys()
    for key, value in right.items():
        torch.testing.assert_close(got[key], value, rtol=0, atol=0)
    assert len(found.checkpoint["dequantized"]) == 14
    assert "14 weights of the checkpoint are" in found.notes[0]
    assert found.checkpoint["unused"] == []
    assert getattr(found.module.config, "quantization_config", None) is None


@pytest.mark.parametrize("name", FORMATS)
def test_weights_are_dequantized_when_they_are_read(name: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    how, config = FORMATS[name]
    right = quantize(folder, how)
    describe(folder, quantization_config=config)
    monkeypatch.setattr(reserves, "LARGE", 500)
    found = loaded(folder)
    assert not found.reserve.touched()
    assert all(one.made for one in found.reserve.weights(found.module.model.layers))
    found.reserve.fill(found.module)
    for key, value in found.module.state_dict().items():
        torch.testing.assert_close(value, right[key], rtol=0, atol=0)


@pytest.mark.parametrize("parts", [0, 3])
def test_scales_count_where_nothing_but_the_tensors_tells_of_them(parts: int, folder: Path, tmp_path: Path) -> None:
    right = quantize(folder, checkpoints.fp8_tensor)
    change(folder, lambda tensors: tensors.update({f"{Q}.input_scale": torch.tensor(0.01)}))
    if parts:
        shard(folder, parts)
    made = export(folder, tmp_path / "out" / "m.onnx", past=False)
    model = MODELS["llama"]()
    model.load_state_dict(right)
    ids = np.arange(1, 7)[None]
    with torch.no_grad():
        want = model(torch.from_numpy(ids)).logits.numpy()
    feeds = {"input_ids": ids, "attention_mask": np.ones_like(ids), "position_ids": np.arange(6)[None]}
    got = Session(made.path).run(feeds)["logits"]
    np.testing.assert_allclose(got, want, atol=1e-4 * np.abs(want).max())
    told = made.to_json()
    assert told["checkpoint"]["dequantized"][f"{Q}.weight"] == "float8 (E4M3)"
    assert told["checkpoint"]["unused"] == [f"{Q}.input_scale"]
    assert "described nowhere" in made.notes[0]
    assert "cannot be seen" in told["shows"]


def test_columns_of_a_group_need_not_be_neighbours(folder: Path) -> None:
    order = torch.tensor([column % 2 for column in range(32)])
    scale, zero = torch.tensor([[1.0, 10.0]] * 8), checkpoints.words(torch.tensor([[0, 1]] * 8).T).T
    values = torch.arange(-128, 128).reshape(8, 32) % 16 - 8
    stored = {"_packed": checkpoints.words(values), "_scale": scale, "_zero_point": zero, "_g_idx": order}
    only(folder, {f"a.weight{end}": value for end, value in stored.items()} | {"a.weight_shape": torch.tensor([8, 32])})
    found = weights(read(folder, {}))
    assert found is not None
    want = torch.where(order == 0, values.float(), (values - 1) * 10.0)
    torch.testing.assert_close(found.tensors["a.weight"].read(), want, rtol=0, atol=0)
    assert found.used == ("a.weight_g_idx", "a.weight_scale", "a.weight_shape", "a.weight_zero_point")


@pytest.mark.parametrize("scale", [torch.full((4,), 2.0), torch.full((4, 6), 2.0), torch.full((4, 1, 1), 2.0)], ids=str)
def test_stacked_experts_have_scales_of_their_own(scale: Any, folder: Path) -> None:
    scale = scale * torch.arange(1, 5).reshape(4, *(1 for _ in scale.shape[1:]))
    values = torch.ones(4, 6, 8).to(torch.float8_e5m2)
    only(folder, {"e.up_proj": values, "e.up_proj_scale": scale})
    found = weights(read(folder, {}))
    assert found is not None
    want = torch.arange(2.0, 10.0, 2.0).reshape(4, 1, 1).expand(4, 6, 8)
    torch.testing.assert_close(found.tensors["e.up_proj"].read(), want, rtol=0, atol=0)


def test_rows_of_bitsandbytes_have_127_levels(folder: Path) -> None:
    values = torch.tensor([[127, -127], [1, 0]], dtype=torch.int8)
    stored = {
        "a.weight": values,
        "a.SCB": torch.tensor([2.0, 127.0]),
        "a.weight_format": torch.zeros((), dtype=torch.uint8),
    }
    only(folder, stored)
    found = weights(read(folder, {"quantization_config": {"quant_method": "bitsandbytes", "load_in_8bit": True}}))
    assert found is not None
    torch.testing.assert_close(found.tensors["a.weight"].read(), torch.tensor([[2.0, -2.0], [1.0, 0.0]]))


@pytest.mark.parametrize(
    ("shape", "scales", "config", "step"),
    [
        ((256, 384), (2, 3), {}, 128),
        ((200, 128), (2, 1), {"weight_block_size": [128, 128]}, 128),
        ((200, 128), (2, 1), {"weight_block_size": [100, 128]}, 100),
        ((200, 128), (2, 1), {}, None),
        ((129, 128), (2, 1), {}, 128),
        ((129, 128), (5, 1), {}, None),
        ((64, 64), (3, 64), {}, None),
    ],
)
def test_blocks_are_those_that_the_sizes_or_the_folder_name(
    shape: tuple[int, int], scales: tuple[int, int], config: dict[str, Any], step: int | None, folder: Path
) -> None:
    scale = torch.arange(1.0, scales[0] * scales[1] + 1).reshape(scales)
    stored = {"a.weight": torch.ones(shape).to(torch.float8_e4m3fn), "a.weight_scale_inv": scale}
    only(folder, stored)
    here = read(folder, {"quantization_config": {"quant_method": "fp8"} | config})
    if step is None:
        with pytest.raises(ModelError, match=r"'a.weight' .* which scale belongs to which value"):
            weights(here)
        return
    found = weights(here)
    assert found is not None
    last = int(scale[-1, -1])
    assert found.tensors["a.weight"].read()[step - 1, 0] == 1
    assert found.tensors["a.weight"].read()[step, 0] == 1 + scales[1]
    assert found.tensors["a.weight"].read()[-1, -1] == last


def words_of(kind: Callable[[dict[str, Any]], None], *patterns: str) -> tuple[Callable[[Path], None], tuple[str, ...]]:
    return (lambda folder: change(folder, kind)), patterns


def swap(name: str, value: Any, **beside: Any) -> Callable[[dict[str, Any]], None]:
    def edit(tensors: dict[str, Any]) -> None:
        del tensors[f"{Q}.weight"]
        tensors[f"{Q}.{name}"] = value
        tensors.update({f"{Q}.{key}": one for key, one in beside.items()})

    return edit


F8, U8, I32 = torch.ones(32, 32).to(torch.float8_e4m3fn), torch.ones(32, 16, dtype=torch.uint8), torch.ones(4, 32).int()
SCALE = torch.ones(32, 2)
REFUSED: dict[str, tuple[Callable[[Path], Any], tuple[str, ...]]] = {
    "float8 without a scale": words_of(
        swap("weight", F8), "F8_E4M3", "without a scale", Q, "beside the first: nothing"
    ),
    "float8 with an odd scale": words_of(swap("weight", F8, descale=SCALE), "without a scale", "q_proj.descale"),
    "float8 with two scales": words_of(
        swap("weight", F8, weight_scale=SCALE, weight_scale_inv=SCALE), "scales that are not known"
    ),
    "a scale of integers": words_of(swap("weight", F8, weight_scale=SCALE.to(torch.uint8)), r"weight_scale \(U8\)"),
    "GPTQ": words_of(
        swap("qweight", I32, qzeros=I32[:2, :4].clone(), scales=torch.ones(2, 32), g_idx=torch.arange(32)),
        "packed as GPTQ does",
        "nothing says in which version",
        "qweight",
    ),
    "NVFP4": words_of(
        swap("weight", U8, weight_scale=F8, weight_scale_2=torch.ones(())), "NVFP4", "do not fit", "weight_scale_2"
    ),
    "two values to a byte": words_of(swap("weight", U8, weight_scale=SCALE), "U8 with .*weight_scale", "to a byte"),
    "bitsandbytes": words_of(swap("weight", U8, **{"weight.absmax": SCALE}), "bitsandbytes", "absmax"),
    "tiles": words_of(
        swap("weight", F8.to(torch.int8), SCB=torch.ones(32), weight_format=torch.ones((), dtype=torch.uint8)), "tiles"
    ),
    "INT8 alone": words_of(swap("weight", F8.to(torch.int8)), "I8 and have no scale", Q),
    "a method that is not read": (
        lambda f: describe(f, quantization_config={"quant_method": "bitnet"}),
        ("already .bitnet", "config.json", "not read", "float model"),
    ),
    "a layout that is not read": (
        lambda f: describe(f, quantization_config=compressed("marlin-24")),
        ("compressed-tensors", "marlin-24"),
    ),
    "rotations": (
        lambda f: describe(f, quantization_config=compressed("dense") | {"transform_config": group()}),
        ("transform_config", "rotates"),
    ),
    "a file of AutoGPTQ": (
        lambda f: describe(f, "quantize_config.json", bits=4),
        ("gptq", "quantize_config.json", "none of its tensors"),
    ),
    "words of 3 bits": words_of(
        swap("weight_packed", I32.repeat(8, 1)[:, :3], weight_scale=SCALE, weight_shape=torch.tensor([32, 32])),
        "neither 4 nor 8 bits",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_read_is_refused_by_what_it_is(case: str, folder: Path, tmp_path: Path) -> None:
    ruin, patterns = REFUSED[case]
    ruin(folder)
    for pattern in patterns:
        with pytest.raises(ModelError, match=pattern):
            export(folder, tmp_path / "out" / "m.onnx")
    assert not (tmp_path / "out").exists()


def test_float_weights_of_a_folder_that_says_quantized_are_taken_as_they_are(folder: Path) -> None:
    before = loaded(folder).module.state_dict()
    describe(folder, quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True})
    found = loaded(folder)
    assert "all are float: taken as they are" in found.notes[0]
    assert all(torch.equal(value, before[name]) for name, value in found.module.state_dict().items())


def test_a_folder_without_architectures_is_read_too(folder: Path) -> None:
    right = quantize(folder, checkpoints.fp8_channel)
    describe(folder, architectures=None)
    found = loaded(folder)
    assert type(found.module).__name__ == "LlamaModel"
    assert torch.equal(found.module.layers[0].self_attn.q_proj.weight, right[f"{Q}.weight"])
    assert "lm_head" in found.notes[1]
