"""Encoders compute what torch computes at sizes that were not traced."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from qcompiler.runtime.session import Session
from tests.kit.architectures import Exports
from tests.kit.frontends.exported import tokens


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (3, 7), (2, 40)])
def test_encoders_return_states_and_pooler(exports: Exports, batch: int, length: int) -> None:
    model, made = exports("bert")
    assert made.kind == "encoder"
    ids = tokens(batch, length)
    mask = np.ones_like(ids)
    mask[0, max(1, length - 2) :] = 0
    with torch.no_grad():
        want = model(input_ids=torch.from_numpy(ids), attention_mask=torch.from_numpy(mask))
    got = Session(made.path).run({"input_ids": ids, "attention_mask": mask})
    assert list(got) == ["last_hidden_state", "pooler_output"]
    for name, value in got.items():
        np.testing.assert_allclose(value, want[name].numpy(), atol=1e-4)
