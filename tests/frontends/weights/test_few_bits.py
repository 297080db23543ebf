"""Weights that other libraries packed into few bits are the weights that they mean, to the last bit."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qcompiler.errors import ModelError
from qcompiler.frontends.sources import load
from qcompiler.frontends.weights.checkpoint import read
from qcompiler.frontends.weights.dequantize import weights
from qcompiler.frontends.weights.few_bits import unpacked
from tests.kit.frontends import packing
from tests.kit.frontends.checkpoints import change, describe

How = Callable[[Any], packing.Stored]
CASES: dict[str, tuple[How, dict[str, Any], str]] = {
    "GPTQ": (packing.gptq, {"quant_method": "gptq", "bits": 4, "group_size": 16}, "INT4 of GPTQ"),
    "GPTQ, columns out of order": (
        lambda weight: packing.gptq(weight, ordered=False),
        {"quant_method": "gptq", "bits": 4, "desc_act": True},
        "INT4 of GPTQ",
    ),
    "GPTQ, version 2": (
        lambda weight: packing.gptq(weight, version=2),
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "gptq_v2"},
        "INT4 of GPTQ",
    ),
    "GPTQ, 3 bits": (lambda weight: packing.gptq(weight, bits=3), {"quant_method": "gptq", "bits": 3}, "INT3 of GPTQ"),
    "GPTQ, 2 bits": (lambda weight: packing.gptq(weight, bits=2), {"quant_method": "gptq", "bits": 2}, "INT2 of GPTQ"),
    "GPTQ, 8 bits": (lambda weight: packing.gptq(weight, bits=8), {"quant_method": "gptq", "bits": 8}, "INT8 of GPTQ"),
    "AWQ": (packing.awq, {"quant_method": "awq", "bits": 4, "version": "gemm"}, "INT4 of AWQ"),
    "NVFP4 of modelopt": (packing.nvfp4, {"quant_method": "modelopt", "quant_algo": "NVFP4"}, "NVFP4"),
    "NVFP4 of compressed-tensors": (
        lambda weight: packing.nvfp4(weight, divided=True),
        {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"},
        "NVFP4",
    ),
    "MXFP4": (packing.mxfp4, {"quant_method": "compressed-tensors", "format": "mxfp4-pack-quantized"}, "MXFP4"),
    "NF4": (packing.nf4, {"quant_method": "bitsandbytes", "load_in_4bit": True}, "NF4 of bitsandbytes"),
    "NF4, nested": (
        lambda weight: packing.nf4(weight, nested=True),
        {"quant_method": "bitsandbytes", "load_in_4bit": True},
        "NF4 of bitsandbytes",
    ),
}


def pack(folder: Path, how: How, only: str = "q_proj") -> dict[str, Any]:
    """Packs some layers; returns what the model's weights are then."""
    right: dict[str, Any] = {}

    def edit(tensors: dict[str, Any]) -> None:
        right.update(tensors)
        for name in [one for one in tensors if one.endswith(f"{only}.weight")]:
            stored, means = how(tensors.pop(name))
            right[name] = means
            tensors.update({f"{name.removesuffix('.weight')}.{key}": value for key, value in stored.items()})

    change(folder, edit)
    return right


@pytest.mark.parametrize("case", CASES)
def test_a_folder_has_the_weights_that_its_packed_numbers_mean(case: str, folder: Path) -> None:
    how, said, kind = CASES[case]
    right = pack(folder, how)
    describe(folder, quantization_config=said)
    found = load(folder, inputs=None, axes=None, trust_remote_code=False)
    got = found.module.state_dict()
    for name, value in right.items():
        torch.testing.assert_close(got[name], value, rtol=0, atol=0)
    assert set(found.checkpoint["dequantized"].values()) == {kind}
    assert len(found.checkpoint["dequantized"]) == 2
    assert kind in found.notes[0]


def test_what_autogptq_says_beside_the_configuration_counts(folder: Path) -> None:
    right = pack(folder, packing.gptq)
    describe(folder, "quantize_config.json", bits=4, group_size=16, desc_act=False)
    found = load(folder, inputs=None, axes=None, trust_remote_code=False)
    name = "model.layers.1.self_attn.q_proj.weight"
    torch.testing.assert_close(found.module.state_dict()[name], right[name], rtol=0, atol=0)


def test_scales_of_inputs_go_into_the_weights(folder: Path) -> None:
    scale, name = torch.linspace(0.5, 2, 32), "model.layers.0.self_attn.q_proj"
    right = pack(folder, packing.nvfp4)
    change(folder, lambda tensors: tensors.update({f"{name}.pre_quant_scale": scale}))
    found = load(folder, inputs=None, axes=None, trust_remote_code=False).module.state_dict()[f"{name}.weight"]
    torch.testing.assert_close(found, right[f"{name}.weight"] * scale, rtol=0, atol=0)


def test_experts_of_gpt_oss_are_turned(folder: Path) -> None:
    stored, means = packing.mxfp4(torch.zeros(6, 64))
    blocks, scales = stored["weight_packed"].reshape(2, 3, 2, 16), stored["weight_scale"].reshape(2, 3, 2)

    def edit(tensors: dict[str, Any]) -> None:
        tensors.clear()
        tensors.update({"mlp.experts.up_proj_blocks": blocks, "mlp.experts.up_proj_scales": scales})

    change(folder, edit)
    found = weights(read(folder, {"quantization_config": {"quant_method": "mxfp4"}}))
    assert found is not None
    want = means.reshape(2, 3, 64).transpose(1, 2)
    torch.testing.assert_close(found.tensors["mlp.experts.up_proj"].read(), want, rtol=0, atol=0)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_words_hold_numbers_from_the_lowest_bits_on(bits: int) -> None:
    numbers = torch.randint(0, 1 << bits, (96,), generator=torch.Generator().manual_seed(0))
    words = torch.tensor(packing.stream(numbers.tolist(), bits), dtype=torch.int32)
    assert torch.equal(unpacked(words, bits), numbers)


REFUSED: dict[str, tuple[How, dict[str, Any] | None, str]] = {
    "no version": (packing.gptq, None, "nothing says in which version"),
    "an unknown version": (
        packing.gptq,
        {"quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin"},
        "packed as 'marlin'",
    ),
    "other bits": (packing.gptq, {"quant_method": "gptq", "bits": 8}, "of 4 bits, and the folder says 8"),
    "another AWQ": (packing.awq, {"quant_method": "awq", "version": "gemv"}, "by AWQ for 'gemv'"),
    "too few scales": (
        lambda weight: (
            dict(packing.nvfp4(weight)[0]) | {"weight_scale": torch.ones(3, 2).to(torch.float8_e4m3fn)},
            weight,
        ),
        {"quant_method": "modelopt"},
        "do not fit each other",
    ),
    "flat words": (
        lambda weight: (dict(packing.gptq(weight)[0]) | {"qweight": torch.zeros(4, dtype=torch.int32)}, weight),
        {"quant_method": "gptq", "bits": 4},
        "are no packed weight",
    ),
    "no scales": (
        lambda weight: (dict(packing.gptq(weight)[0]) | {"scales": torch.zeros(0, weight.shape[0])}, weight),
        {"quant_method": "gptq", "bits": 4},
        "are no packed weight",
    ),
    "bits in words": (packing.gptq, {"quant_method": "gptq", "bits": "four"}, "of 4 bits, and the folder says four"),
    "groups in front of the first": (
        lambda weight: (
            dict(packing.gptq(weight)[0]) | {"g_idx": torch.full((weight.shape[1],), -1, dtype=torch.int32)},
            weight,
        ),
        {"quant_method": "gptq", "bits": 4},
        "g_idx has -1",
    ),
    "no state": (
        lambda weight: ({k: v for k, v in packing.nf4(weight)[0].items() if "state" not in k}, weight),
        {"quant_method": "bitsandbytes"},
        "without its table of values or its state",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_certain_is_refused_with_its_name(case: str, folder: Path) -> None:
    how, said, words = REFUSED[case]
    pack(folder, how)
    if said is not None:
        describe(folder, quantization_config=said)
    with pytest.raises(ModelError, match=words):
        load(folder, inputs=None, axes=None, trust_remote_code=False)
