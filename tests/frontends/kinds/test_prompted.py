"""Segmentation by prompt: a picture is encoded once, and any number of points makes masks of it."""

from __future__ import annotations

import json

import numpy as np
import torch

from qcompiler.frontends.kinds.prompted import is_prompted
from qcompiler.runtime.session import Session
from tests.kit.architectures import MODELS, Exports


def test_both_files_are_the_whole_model(exports: Exports) -> None:
    model, made = exports("sam")
    vision, decoder = (Session(path) for path in made.paths)
    random = np.random.default_rng(0)
    pixels = random.normal(size=(1, 3, 32, 32)).astype(np.float32)
    encoded = vision.run({"pixel_values": pixels})["image_embeddings"]
    for prompts, points in ((1, 1), (4, 3)):
        places = random.uniform(0, 32, (1, prompts, points, 2)).astype(np.float32)
        labels = random.integers(0, 2, (1, prompts, points))
        got = decoder.run({"image_embeddings": encoded, "input_points": places, "input_labels": labels})
        with torch.no_grad():
            given = (torch.from_numpy(one) for one in (pixels, places, labels))
            want = dict(zip(("pixel_values", "input_points", "input_labels"), given, strict=True))
            masks = model(**want)
        for name in ("pred_masks", "iou_scores"):
            right = getattr(masks, name).numpy()
            np.testing.assert_allclose(got[name], right, atol=1e-3 * np.abs(right).max())
    found = json.loads(made.path.with_name("model.set.json").read_text())
    assert found["feeds"][0]["output"] == "image_embeddings"


def test_other_models_are_none() -> None:
    assert not is_prompted(MODELS["clip"]())
