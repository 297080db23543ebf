"""The manifest of a set: its parts, and what feeds what."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from qcompiler.frontends.file_set import described, write
from qcompiler.frontends.kinds.parts import Link, ModelKind, ModelPart
from qcompiler.frontends.torch_onnx import Job


def part(name: str) -> ModelPart:
    job = Job(lambda x: (x,), torch.nn.Identity(), {"x": torch.ones(1)}, {"x": {0: "batch"}}, ["y"], name)
    return ModelPart(name, job, lambda run: iter(()))


def test_parts_and_links_are_plain_data(tmp_path: Path) -> None:
    kind = ModelKind(
        "pair", (part("encoder"), part("decoder")), (Link("encoder", "y", "decoder", "x"),), (("scale", 2.5),)
    )
    files = {"encoder": "encoder_m.onnx", "decoder": "decoder_m.onnx"}
    shapes: dict[str, Any] = {file: {"x": ("batch", 3)} for file in files.values()}
    write(tmp_path / "m.set.json", kind, files, shapes, shapes)
    found = json.loads((tmp_path / "m.set.json").read_text())
    assert found == json.loads(json.dumps(described(kind, files, shapes, shapes)))
    assert [one["file"] for one in found["parts"]] == list(files.values())
    assert found["parts"][0]["inputs"] == {"x": ["batch", 3]}
    assert found["feeds"] == [{"from": "encoder", "output": "y", "to": "decoder", "input": "x"}]
    assert found["constants"] == {"scale": 2.5}
