"""Dual encoders: each file computes the embedding that the class computes beside the other one."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from qcompiler.errors import UsageError
from qcompiler.frontends.export import export
from qcompiler.frontends.kinds.dual_encoder import is_dual
from qcompiler.runtime.session import Session
from tests.kit.architectures import MODELS, Exports


def test_towers_are_files_whose_product_is_what_the_class_returns(exports: Exports) -> None:
    model, made = exports("clip")
    text, vision = (next(path for path in made.paths if path.name.startswith(one)) for one in ("text", "vision"))
    ids = np.asarray([[5, 9, 7, 2], [4, 2, 2, 2], [3, 8, 2, 2]])
    pixels = np.random.default_rng(0).normal(size=(2, 3, 32, 32)).astype(np.float32)
    mask = np.ones_like(ids)
    session = Session(text)
    feeds = {"input_ids": ids, "attention_mask": mask}
    left = session.run({name: feeds[name] for name in session.inputs})["text_embeds"]
    right = Session(vision).run({"pixel_values": pixels})["image_embeds"]
    with torch.no_grad():
        want = model(torch.from_numpy(ids), torch.from_numpy(pixels), torch.from_numpy(mask)).logits_per_text.numpy()
    found = json.loads(made.path.with_name("model.set.json").read_text())
    np.testing.assert_allclose(found["constants"]["logit_scale"] * left @ right.T, want, rtol=1e-3, atol=1e-3)
    assert {one["name"] for one in found["parts"]} == {"text", "vision"}


def test_other_models_are_none() -> None:
    assert not is_dual(MODELS["bert"]())


def test_a_dual_encoder_has_no_cache(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="leave --past out"):
        export(MODELS["clip"](), tmp_path / "m.onnx", past=True)
