"""transformers models as they are traced: experts as layers, and everything put back as it was."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from qcompiler.frontends.tracing import LONGEST_SCAN, expert_layers, exportable, selective_scan
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


@pytest.mark.parametrize("tokens", [1, 5, 33])
def test_states_found_by_doubling_are_those_of_the_loop(tokens: int) -> None:
    from transformers.models.mamba.modeling_mamba import mamba_selective_scan

    generator = torch.Generator().manual_seed(tokens)

    def drawn(*sizes: int) -> Any:
        return torch.randn(*sizes, generator=generator)

    given = [drawn(2, 6, tokens), drawn(2, 6, tokens), -drawn(6, 3).exp(), drawn(2, 3, tokens), drawn(2, 3, tokens)]
    more: dict[str, Any] = {"D": drawn(6), "z": drawn(2, 6, tokens), "delta_bias": drawn(6), "delta_softplus": True}
    more["return_last_state"] = True
    want = mamba_selective_scan(*given, **more)
    got = selective_scan(*given, **more)
    for ours, theirs in zip(got, want, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_a_text_that_the_doubling_does_not_reach_is_an_error() -> None:
    ones = torch.ones(1, 1, LONGEST_SCAN + 1)
    with pytest.raises(RuntimeError, match="must match"):
        selective_scan(ones, ones, -torch.ones(1, 1), ones, ones)


def test_repeats_and_attention_are_put_back() -> None:
    before = torch.Tensor.repeat_interleave
    model = MODELS["detr"]()
    attention = {name: one.config._attn_implementation for name, one in model.named_modules() if hasattr(one, "config")}
    with exportable(model):
        assert model.config._attn_implementation == "eager"
        tensor = torch.arange(6).reshape(2, 3)
        assert torch.equal(tensor.repeat_interleave(2, 1), before(tensor, 2, 1))
        assert torch.equal(torch.repeat_interleave(tensor, 3, dim=-2), before(tensor, 3, 0))
        assert torch.equal(tensor.repeat_interleave(torch.tensor([1, 2]), 0), before(tensor, torch.tensor([1, 2]), 0))
    assert torch.Tensor.repeat_interleave is before
    assert attention == {n: m.config._attn_implementation for n, m in model.named_modules() if hasattr(m, "config")}
