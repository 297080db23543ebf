"""LoRA adapters become part of the weights, as peft computes them beside the model."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from qcompiler.errors import ModelError
from qcompiler.frontends.sources import load
from qcompiler.frontends.weights import reserve as reserves
from tests.kit.frontends.checkpoints import describe

Q, V = "model.layers.0.self_attn.q_proj", "model.layers.1.self_attn.v_proj"
RANK = 4


def factors(name: str, inputs: int, outputs: int, seed: int = 0) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(seed)
    start = f"base_model.model.{name}.lora_"
    first = torch.randn(RANK, inputs, generator=generator)
    return {f"{start}A.weight": first, f"{start}B.weight": torch.randn(outputs, RANK, generator=generator)}


def write(folder: Path, tensors: dict[str, Any], **said: Any) -> None:
    folder.mkdir(exist_ok=True)
    describe(folder, "adapter_config.json", **{"peft_type": "LORA", "r": RANK, "lora_alpha": 8, **said})
    save_file({name: value.contiguous() for name, value in tensors.items()}, folder / "adapter_model.safetensors")


def loaded(folder: Path) -> Any:
    return load(folder, inputs=None, axes=None, trust_remote_code=False)


def product(tensors: dict[str, Any], name: str) -> Any:
    start = f"base_model.model.{name}.lora_"
    return tensors[f"{start}B.weight"] @ tensors[f"{start}A.weight"]


@pytest.mark.parametrize(
    ("said", "scale"),
    [
        ({}, 2.0),
        ({"use_rslora": True}, 4.0),
        ({"alpha_pattern": {"q_proj": 12}}, 3.0),
        ({"alpha_pattern": {"k_proj": 12}}, 2.0),
    ],
)
def test_factors_are_added_to_the_weight(said: dict[str, Any], scale: float, folder: Path) -> None:
    before = loaded(folder).module.state_dict()
    tensors = factors(Q, 32, 32)
    write(folder, tensors, **said)
    found = loaded(folder)
    got = found.module.state_dict()
    torch.testing.assert_close(got[f"{Q}.weight"], before[f"{Q}.weight"] + scale * product(tensors, Q))
    assert all(torch.equal(got[name], before[name]) for name in before if name != f"{Q}.weight")
    assert found.checkpoint["merged"] == [Q]
    assert any("merged into 1 layers" in note for note in found.notes)


def test_a_folder_with_an_adapter_alone_leads_to_its_model(folder: Path, tmp_path: Path) -> None:
    tensors = factors(Q, 32, 32) | factors(V, 32, 16, 1)
    write(tmp_path / "adapter", tensors, base_model_name_or_path="../model")
    before, found = loaded(folder).module.state_dict(), loaded(tmp_path / "adapter")
    assert found.tokenizer is not None
    for name in (Q, V):
        got = found.module.state_dict()[f"{name}.weight"]
        torch.testing.assert_close(got, before[f"{name}.weight"] + 2 * product(tensors, name))


def test_directions_and_lengths_are_taken_apart_by_dora(folder: Path) -> None:
    before = loaded(folder).module.state_dict()[f"{Q}.weight"]
    lengths = torch.rand(32, generator=torch.Generator().manual_seed(2)) + 1
    tensors = factors(Q, 32, 32)
    write(folder, {**tensors, f"base_model.model.{Q}.lora_magnitude_vector": lengths}, use_dora=True)
    got = loaded(folder).module.state_dict()[f"{Q}.weight"]
    direction = before + 2 * product(tensors, Q)
    torch.testing.assert_close(got, lengths[:, None] * direction / direction.norm(dim=1, keepdim=True))


def test_embeddings_and_whole_modules_are_taken(folder: Path) -> None:
    before = loaded(folder).module.state_dict()
    first, second, head = torch.randn(RANK, 96), torch.randn(32, RANK), torch.randn(96, 32)
    start = "base_model.model.model.embed_tokens.lora_embedding_"
    tensors = {f"{start}A": first, f"{start}B": second, "base_model.model.lm_head.modules_to_save.default.weight": head}
    write(folder, tensors)
    got = loaded(folder).module.state_dict()
    want = before["model.embed_tokens.weight"] + 2 * (second @ first).T
    torch.testing.assert_close(got["model.embed_tokens.weight"], want)
    assert torch.equal(got["lm_head.weight"], head)


def test_layers_of_gpt2_have_their_weights_the_other_way_round(tmp_path: Path) -> None:
    import transformers

    config = transformers.GPT2Config(vocab_size=32, n_embd=16, n_layer=1, n_head=2, n_positions=16)
    model, name = transformers.GPT2LMHeadModel(config).eval(), "transformer.h.0.attn.c_attn"
    model.save_pretrained(tmp_path / "model")
    tensors = factors(name, 16, 48)
    write(tmp_path / "model", tensors, fan_in_fan_out=True)
    got = loaded(tmp_path / "model").module.get_submodule(name).weight
    torch.testing.assert_close(got, model.get_submodule(name).weight + 2 * product(tensors, name).T)


@pytest.mark.parametrize("said", [{}, {"use_rslora": True}, {"use_dora": True}], ids=str)
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16], ids=str)
def test_weights_that_are_read_late_are_merged_late(
    said: dict[str, Any], kind: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = factors(Q, 32, 32)
    tensors["base_model.model.lm_head.modules_to_save.weight"] = torch.ones(96, 32, dtype=kind)
    if "use_dora" in said:
        tensors[f"base_model.model.{Q}.lora_magnitude_vector"] = torch.linspace(1, 2, 32)
    write(folder, tensors, **said)
    right = loaded(folder).module.state_dict()
    monkeypatch.setattr(reserves, "LARGE", 500)
    late = loaded(folder)
    assert not late.reserve.touched()
    assert float(late.module.state_dict()[f"{Q}.weight"].abs().max()) == 0.0
    late.reserve.fill(late.module)
    for name, value in late.module.state_dict().items():
        assert torch.equal(value, right[name]), name


REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "another kind": ({}, {"peft_type": "IA3"}, "of kind IA3, and only LoRA"),
    "another layer": (factors("model.layers.9.mlp.up_proj", 32, 48), {}, "does not have"),
    "another size": (factors(Q, 16, 32), {}, r"has \(32, 16\) for .* which is \(32, 32\)"),
    "one factor": ({f"base_model.model.{Q}.lora_A.weight": torch.ones(RANK, 32)}, {}, "not both factors"),
    "an unknown tensor": ({f"base_model.model.{Q}.lora_C.weight": torch.ones(2)}, {}, "is not known"),
    "changed weights": (
        factors(Q, 32, 32),
        {"init_lora_weights": "pissa_niter_16"},
        "changes the weights of the model",
    ),
    "factors of two ranks": (
        {
            f"base_model.model.{Q}.lora_{one}.weight": torch.ones(shape)
            for one, shape in (("A", (4, 32)), ("B", (32, 5)))
        },
        {},
        "do not fit each other",
    ),
    "no rank": (
        {
            f"base_model.model.{Q}.lora_{one}.weight": torch.ones(shape)
            for one, shape in (("A", (0, 32)), ("B", (32, 0)))
        },
        {},
        "do not fit each other",
    ),
    "a pattern that is none": (factors(Q, 32, 32), {"alpha_pattern": {"(": 3}}, "do not fit each other"),
    "patterns in a list": (factors(Q, 32, 32), {"alpha_pattern": [1]}, "do not fit each other"),
    "an alpha that is no number": (factors(Q, 32, 32), {"lora_alpha": "x"}, "do not fit each other"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_adapters_that_cannot_be_merged_say_what_to_do(case: str, folder: Path) -> None:
    tensors, said, words = REFUSED[case]
    write(folder, tensors or {"x": torch.ones(1)}, **said)
    with pytest.raises(ModelError, match=words) as caught:
        loaded(folder)
    assert "merge_and_unload" in str(caught.value) or "fetch" in str(caught.value)


def drop_base(folder: Path) -> None:
    (folder / "config.json").unlink()


PLACES: dict[str, tuple[Callable[[Path], Any], str]] = {
    "nowhere": (drop_base, "'some/model'.* nothing is fetched: name its folder as base_model_name_or_path"),
    "pickled": (
        lambda folder: shutil.move(folder / "adapter_model.safetensors", folder / "adapter_model.bin"),
        "nothing pickled is ever loaded",
    ),
    "damaged": (lambda folder: (folder / "adapter_config.json").write_text("{"), "cannot be read as JSON"),
    "damaged weights": (
        lambda folder: (folder / "adapter_model.safetensors").write_bytes(b"\xff" * 40),
        "cannot load .*adapter_model.safetensors",
    ),
}


@pytest.mark.parametrize("case", PLACES)
def test_adapters_without_their_files_say_what_to_do(case: str, folder: Path) -> None:
    ruin, words = PLACES[case]
    write(folder, factors(Q, 32, 32), base_model_name_or_path="some/model")
    ruin(folder)
    with pytest.raises(ModelError, match=words):
        loaded(folder)


@pytest.mark.parametrize("named", ["https://example.org/model", "a" * 5000, "a\0b", "/etc"])
def test_a_model_that_is_no_folder_is_named_and_not_fetched(named: str, tmp_path: Path) -> None:
    write(tmp_path, factors(Q, 32, 32), base_model_name_or_path=named)
    with pytest.raises(ModelError, match="is no folder here, and nothing is fetched") as caught:
        loaded(tmp_path)
    assert len(str(caught.value)) < 1000
