"""Tensors that a class did not take: harmless ones are recorded, parts warned about, what layers lost is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import qcompiler
from qcompiler.errors import ModelError
from qcompiler.frontends.sources import load
from tests.kit.architectures import MODELS
from tests.kit.frontends.checkpoints import change, describe, fp8_tensor, quantize

Q = "model.layers.0.self_attn.q_proj"


def loaded(folder: Path) -> Any:
    return load(folder, inputs=None, axes=None, trust_remote_code=False)


def add(**tensors: Any) -> Callable[[dict[str, Any]], None]:
    return lambda before: before.update({name.replace("__", "."): value for name, value in tensors.items()})


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    MODELS["bert"]().save_pretrained(tmp_path / "bert")
    return tmp_path / "bert"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("model.rotary_emb.inv_freq", torch.ones(4)),
        ("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
        ("model.position_ids", torch.arange(8)[None]),
        ("model.layers.0.self_attn.masked_bias", torch.tensor(-1e4)),
        ("model.layers.0.self_attn.bias", torch.ones(1, 1, 8, 8, dtype=torch.uint8)),
        (f"{Q}.bias", torch.zeros(32)),
        ("model.pooler.dense.weight", torch.ones(2, 2)),
        ("optimizer.state.0.exp_avg", torch.ones(2, 2)),
    ],
)
def test_what_means_nothing_is_recorded_without_a_word(name: str, value: Any, folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({name: value}))
    found = loaded(folder)
    assert found.checkpoint == {"dequantized": {}, "unused": [name]}
    assert found.notes == []


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (f"{Q}.bias", "weights of layers that the class has without them.*config.json"),
        ("model.layers.1.self_attn.q_norm.weight", "weights of layers.*architectures"),
        (f"{Q}.lora_A.weight", "an adapter.*merge_and_unload"),
        (f"{Q}.lora_B.default.weight", "an adapter"),
        (f"{Q}.weight_scale", "scales or zero points.*float model"),
        (f"{Q}.input_scale", "scales or zero points"),
        (f"{Q}.weight_zero_point", "scales or zero points"),
        (f"{Q}.g_idx", "quantized weights"),
        ("model.layers.0.adapter.down.weight", "an adapter"),
        ("lm_head.bias", "weights of layers"),
        ("base_model.model.lora_embedding_A", "an adapter"),
    ],
)
def test_what_a_layer_lost_is_refused_by_its_name(name: str, words: str, folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({name: torch.ones(3)}))
    with pytest.raises(ModelError, match=rf"1 tensors .* \({name}\): .*{words}"):
        loaded(folder)


@pytest.mark.parametrize(
    "name", ["vision_tower.layers.0.weight", "classifier.weight", "model.layers.2.mlp.up_proj.weight", "logit_scale"]
)
def test_parts_that_the_class_does_not_have_are_warned_about(name: str, folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({name: torch.ones(2, 2)}))
    found = loaded(folder)
    assert len(found.notes) == 1
    assert f"({name})" in found.notes[0]
    assert "LlamaForCausalLM does not have them" in found.notes[0]
    assert found.checkpoint["unused"] == [name]


def test_missing_weights_and_those_of_another_naming_are_named_together(folder: Path) -> None:
    def rename(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if ".q_proj." in name]:
            tensors[name.replace("q_proj", "query")] = tensors.pop(name)

    change(folder, rename)
    words = rf"2 weights are missing \('{Q}.weight', .*random numbers. .*has 2 that .* \(model.layers.0.self_attn.query"
    with pytest.raises(ModelError, match=words):
        loaded(folder)


def test_weights_of_other_sizes_are_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({f"{Q}.weight": torch.ones(8, 32)}))
    with pytest.raises(ModelError, match=rf"1 weights misfit \('{Q}.weight' is \(8, 32\) and not \(32, 32\)\)"):
        loaded(folder)


def test_the_prefix_of_the_base_model_may_be_missing(folder: Path) -> None:
    want = loaded(folder).module.state_dict()
    right = quantize(folder, fp8_tensor)

    def strip(tensors: dict[str, Any]) -> None:
        for name in [name for name in tensors if name.startswith("model.")]:
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    change(folder, strip)
    found = loaded(folder)
    got = found.module.state_dict()
    assert got.keys() == want.keys()
    assert all(torch.equal(got[name], value) for name, value in right.items())
    assert found.checkpoint["unused"] == []


def headless(tensors: dict[str, Any]) -> None:
    del tensors["lm_head.weight"]


def test_a_head_without_weights_is_refused_unless_it_is_tied(folder: Path) -> None:
    change(folder, headless)
    with pytest.raises(ModelError, match=r"1 weights are missing \('lm_head.weight'\)"):
        loaded(folder)
    describe(folder, tie_word_embeddings=True)
    found = loaded(folder)
    assert found.module.lm_head.weight is found.module.model.embed_tokens.weight
    assert found.notes == []


def test_activation_scales_beside_quantized_weights_are_only_recorded(folder: Path) -> None:
    quantize(folder, fp8_tensor)
    scales = {f"{Q}.input_scale": torch.ones(()), "model.layers.0.self_attn.k_proj.k_scale": torch.ones(())}
    change(folder, lambda tensors: tensors.update(scales))
    assert sorted(loaded(folder).checkpoint["unused"]) == sorted(scales)


def test_integer_buffers_of_the_class_are_no_quantized_weights(bert: Path) -> None:
    change(bert, add(embeddings__position_ids=torch.arange(64)[None]))
    found = loaded(bert)
    assert found.notes == []
    assert found.checkpoint["unused"] == ["embeddings.position_ids"]


def test_copies_and_states_of_training_are_no_parts(folder: Path) -> None:
    for name in ("consolidated.safetensors", "pytorch_model.bin", "optimizer.pt", "training_args.bin"):
        (folder / name).write_bytes(b"never read")
    assert loaded(folder).notes == []
    (folder / "mm_projector.bin").write_bytes(b"never read")
    assert "mm_projector.bin" in loaded(folder).notes[0]


def test_a_compile_keeps_the_warnings_of_its_export(folder: Path, tmp_path: Path) -> None:
    change(folder, add(vision_tower__weight=torch.ones(2, 2)))
    recipe = qcompiler.Recipe(target="onnxruntime", precision="int8-weight")
    made = qcompiler.quantize(folder, recipe=recipe, output=tmp_path / "m.qdq.onnx")
    assert any("vision_tower" in text for text in made.manifest["warnings"])
    assert made.manifest["export"]["checkpoint"]["unused"] == ["vision_tower.weight"]
