"""What is too large to be run is held against torch by its first blocks: of the module and of the written graph."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from qcompiler.errors import ModelError
from qcompiler.frontends import blocks, needs
from qcompiler.frontends.blocks import BlockRow
from qcompiler.frontends.export import export
from qcompiler.frontends.weights import reserve as reserves
from qcompiler.frontends.weights.reserve import Reserve
from qcompiler.ir import model as models
from tests.kit.architectures import MODELS, SIZES

FULL, SLIDING = "full_attention", "sliding_attention"


def deep(layers: int = 5) -> Any:
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**{**SIZES, "num_hidden_layers": layers}, num_key_value_heads=2)
    return transformers.LlamaForCausalLM(config)


def mixed(kinds: list[str]) -> Any:
    sizes = {**SIZES, "num_hidden_layers": len(kinds)}
    config = transformers.Gemma3TextConfig(
        **sizes, num_key_value_heads=2, head_dim=16, sliding_window=4, layer_types=kinds
    )
    return transformers.Gemma3ForCausalLM(config)


@pytest.mark.parametrize(
    ("model", "kept"),
    [
        (lambda: deep(5), 2),
        (lambda: mixed([SLIDING, SLIDING, SLIDING, FULL, SLIDING, FULL]), 4),
        (lambda: deep(2), None),
        (lambda: mixed([SLIDING, SLIDING, FULL]), None),
    ],
    ids=["all alike", "until each kind was there", "none to leave out", "the last one is needed"],
)
def test_blocks_are_kept_until_each_kind_is_among_them(model: Any, kept: int | None) -> None:
    found = blocks.find(model())
    assert (None if found is None else found.kept) == kept


def test_what_has_no_one_row_of_blocks_has_none() -> None:
    assert blocks.find(MODELS["t5"]()) is None
    assert blocks.find(torch.nn.Sequential(torch.nn.Linear(2, 2))) is None


def test_a_shortened_module_is_a_smaller_model_and_becomes_itself_again() -> None:
    model = mixed([SLIDING, FULL, SLIDING, FULL, SLIDING]).eval()
    ids = torch.arange(1, 8)[None]
    said = model.config.to_dict()
    with torch.no_grad():
        before = model(ids).logits
        with blocks.shortened(model, BlockRow("model.layers", 5, 2)):
            assert model.config.layer_types == [SLIDING, FULL]
            short = model(ids, use_cache=True)
        assert len(short.past_key_values.layers) == 2
        assert not torch.allclose(short.logits, before)
        assert torch.equal(model(ids).logits, before)
    assert model.config.to_dict() == said


@pytest.fixture
def tight(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of five blocks in BF16, whose weights are read late, on a machine where it cannot be run."""
    deep().to(torch.bfloat16).save_pretrained(tmp_path / "model")
    monkeypatch.setattr(reserves, "LARGE", 1025)
    monkeypatch.setattr(needs, "available_memory", lambda: 1000)
    return tmp_path / "model"


@pytest.mark.parametrize("past", [True, False])
def test_the_first_blocks_of_the_file_are_run_beside_torch(past: bool, tight: Path, tmp_path: Path) -> None:
    made = export(tight, tmp_path / "out" / "m.onnx", past=past)
    assert "the first 2 of 5 blocks were run beside torch" in made.part_checked
    assert made.part_checked in made.notes
    assert made.to_json()["part_checked"] == made.part_checked
    assert 0 < made.error < 1e-5
    names = {one.output for one in made.checked}
    assert names == {"logits", *(f"present.{at}.{part}" for at in (0, 1) for part in ("key", "value") if past)}
    whole = models.load(made.path).graph
    assert len(whole.outputs) == (11 if past else 1)
    assert {f"model.layers.{at}.mlp.up_proj/MatMul" for at in range(5)} <= {node.name for node in whole.nodes}


def test_a_weight_of_a_block_that_is_wrong_in_the_file_is_found(
    tight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = Reserve.values
    monkeypatch.setattr(Reserve, "values", lambda self, place: right(self, place) * 1.01)
    with pytest.raises(ModelError, match="does not compute what torch computes"):
        export(tight, tmp_path / "out" / "m.onnx")
    assert not (tmp_path / "out").exists()


def test_a_graph_of_other_blocks_is_not_cut(tight: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "cut", lambda *_: False)
    said: list[str] = []
    monkeypatch.setattr("qcompiler.support.progress.Silent.warn", lambda _, text: said.append(text))
    made = export(tight, tmp_path / "out" / "m.onnx", past=False)
    assert made.part_checked == ""
    assert "is run beside torch as a whole" in said[0]
