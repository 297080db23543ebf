"""The maker of Llama-like folders: what it writes is a model that transformers takes, of the size asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks.children import write_llama
from qcompiler.frontends.sources import load

LARGEST = 4.0  # of a weight, in its deviations, that is loud


def made(folder: Path, kind: str = "F16") -> Path:
    write_llama.main(str(folder), "128", "3", "96", kind)
    return folder


@pytest.mark.parametrize("kind", ["F16", "F32"])
def test_folders_are_whole_models(kind: str, tmp_path: Path) -> None:
    model = load(made(tmp_path, kind), inputs=None, axes=None, trust_remote_code=False).module
    assert len(model.model.layers) == 3
    with torch.no_grad():
        logits = model(torch.arange(1, 9)[None]).logits
    assert bool(logits.isfinite().all())
    rows = model.model.layers[1].mlp.down_proj.weight.detach().abs().amax(dim=1)
    loud = rows > LARGEST * rows.median()
    assert 0 < int(loud.sum()) <= 6
    assert bool(
        (model.model.layers[2].mlp.down_proj.weight.detach().abs().amax(dim=1) > LARGEST * rows.median())[loud].all()
    )


def test_large_ones_lie_in_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = made(tmp_path / "one")
    monkeypatch.setattr(write_llama, "SHARD", 200_000)
    parts = made(tmp_path / "several")
    index = json.loads((parts / "model.safetensors.index.json").read_text())
    assert len(set(index["weight_map"].values())) == len(list(parts.glob("*.safetensors"))) > 3
    assert all(path.stat().st_size < 250_000 for path in parts.glob("*.safetensors"))
    one, other = (load(path, inputs=None, axes=None, trust_remote_code=False).module for path in (whole, parts))
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in one.state_dict().items())
