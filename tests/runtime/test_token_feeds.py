"""Token ids become feeds for whatever inputs a language model has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.ir.signature import Inputs
from qcompiler.runtime.token_feeds import Filler, present_of

I64: np.dtype[Any] = np.dtype(np.int64)
IDS: Inputs = {"input_ids": (I64, ("batch", "sequence"))}


def test_inputs_of_encoders_and_of_merged_decoders_are_filled() -> None:
    f16 = np.dtype(np.float16)
    inputs: Inputs = {
        "input_ids": (np.dtype(np.int32), (None, None)),
        "token_type_ids": (I64, (None, None)),
        "attention_mask": (np.dtype(np.bool_), (None, None)),
        "cache_position": (I64, (None,)),
        "use_cache_branch": (np.dtype(np.bool_), (1,)),
        "num_logits_to_keep": (I64, ()),
        "past_key_values.0.value": (f16, ("batch", 3, "past", 8)),
    }
    found = Filler(inputs).feed([[5, 6, 7]])
    assert {name: (array.dtype, array.shape) for name, array in found.items()} == {
        "input_ids": (np.dtype(np.int32), (1, 3)),
        "token_type_ids": (I64, (1, 3)),
        "attention_mask": (np.dtype(np.bool_), (1, 3)),
        "cache_position": (I64, (3,)),
        "use_cache_branch": (np.dtype(np.bool_), (1,)),
        "num_logits_to_keep": (I64, ()),
        "past_key_values.0.value": (f16, (1, 3, 0, 8)),
    }
    assert found["attention_mask"].all()
    assert not found["token_type_ids"].any()
    assert not found["use_cache_branch"].any()


def test_a_cache_of_fixed_size_is_masked() -> None:
    inputs: Inputs = {
        **IDS,
        "attention_mask": (I64, (1, 10)),
        "past_key_values.0.key": (np.dtype(np.float32), (1, 2, 6, 4)),
    }
    found = Filler(inputs).feed([[1, 2, 3, 4]])
    assert found["past_key_values.0.key"].shape == (1, 2, 6, 4)
    assert found["attention_mask"].tolist() == [[0] * 6 + [1] * 4]


@pytest.mark.parametrize(
    ("past", "outputs", "present"),
    [
        ("past_key_values.0.key", ["logits", "present.0.key", "present.1.key"], "present.0.key"),
        ("past_key_values.3.value", ["present_key_values.3.value"], "present_key_values.3.value"),
        ("past_key_1", ["present_key_1"], "present_key_1"),
        ("past_key_values.0.key", ["logits"], None),
    ],
)
def test_the_output_that_continues_the_cache_is_known_by_its_name(
    past: str, outputs: list[str], present: str | None
) -> None:
    assert present_of(past, outputs) == present
