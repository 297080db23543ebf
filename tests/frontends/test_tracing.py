"""transformers models as they are traced: experts as layers, and everything put back as it was."""

from __future__ import annotations

import pytest
import torch

from qcompiler.frontends.tracing import expert_layers, exportable
from tests.kit.architectures import MODELS


def test_unrolled_experts_are_exact_for_every_routing() -> None:
    model = MODELS["mixtral"]()
    experts = model.model.layers[0].mlp.experts
    rows = torch.randn(12, 32, generator=torch.Generator().manual_seed(0))
    pairs = torch.tensor([(one, other) for one in range(4) for other in range(4) if one != other])
    weights = torch.rand(12, 2, generator=torch.Generator().manual_seed(1))
    same = torch.tensor([[2, 0]]).repeat(12, 1)  # experts 1 and 3 see nothing
    unrolled = expert_layers(experts)
    for chosen in (pairs, pairs.flip(0), same):
        with torch.no_grad():
            torch.testing.assert_close(unrolled(rows, chosen, weights), experts(rows, chosen, weights))


def test_experts_that_see_no_token_cannot_spoil_the_result() -> None:
    model = MODELS["mixtral"]()
    experts = model.model.layers[0].mlp.experts
    experts.gate_up_proj.data[3] = 1e30  # overflows for whatever goes in
    rows = torch.ones(2, 32)
    with torch.no_grad():
        found = expert_layers(experts)(rows, torch.tensor([[0, 1], [1, 2]]), torch.full((2, 2), 0.5))
    assert torch.isfinite(found).all()


def test_model_is_put_back_as_it_was() -> None:
    from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS as MAKERS

    model = MODELS["mixtral"]()
    block, maker, kind = model.model.layers[0].mlp, MAKERS["eager"], model.config._attn_implementation
    experts = block.experts

    def broken() -> None:
        with exportable(model):
            assert model.config._attn_implementation == "eager"
            assert block.experts is not experts
            assert MAKERS["eager"] is not maker
            raise KeyError

    with pytest.raises(KeyError):
        broken()
    assert block.experts is experts
    assert model.config._attn_implementation == kind != "eager"
    assert MAKERS["eager"] is maker
