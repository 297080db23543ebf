"""Token ids become feeds for whatever inputs a language model has."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from qcompiler.errors import DataError
from qcompiler.ir.signature import Inputs
from qcompiler.runtime.token_feeds import Filler, is_past, present_of

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


def test_positions_and_mask_go_on_behind_what_the_cache_holds() -> None:
    inputs: Inputs = {
        **IDS,
        "attention_mask": (I64, ("batch", "all")),
        "position_ids": (I64, ("batch", "sequence")),
        "cache_position": (I64, ("sequence",)),
        "use_cache_branch": (np.dtype(np.bool_), (1,)),
        "past_key_values.0.key": (np.dtype(np.float32), ("batch", 2, "past", 4)),
    }
    cache = np.ones((2, 2, 5, 4), np.float32)
    found = Filler(inputs).feed([[7, 8], [9, 10]], {"past_key_values.0.key": cache}, seen=5)
    assert found["past_key_values.0.key"] is cache
    assert found["input_ids"].tolist() == [[7, 8], [9, 10]]
    assert found["attention_mask"].tolist() == [[1] * 7] * 2
    assert found["position_ids"].tolist() == [[5, 6]] * 2
    assert found["cache_position"].tolist() == [5, 6]
    assert found["use_cache_branch"].tolist() == [True]


@pytest.mark.parametrize(
    ("shape", "length", "rows"),
    [(("batch", "sequence"), None, 1), ((4, 16), 16, 4), ((None, 16), 16, 1), (("n",), None, 1), (None, None, 1)],
    ids=str,
)
def test_fixed_sizes_of_the_ids_are_known(shape: Any, length: int | None, rows: int) -> None:
    filler = Filler({"input_ids": (I64, shape)})
    assert (filler.ids, filler.length, filler.rows, filler.past) == ("input_ids", length, rows, ())


def test_ids_of_one_axis_are_a_list() -> None:
    assert Filler({"tokens": (np.dtype(np.int32), ("n",))}).feed([[1, 2, 3]])["tokens"].tolist() == [1, 2, 3]


def test_the_only_other_integer_input_takes_the_ids() -> None:
    inputs: Inputs = {"attention_mask": (I64, (None, None)), "tokens": (I64, (None, None))}
    assert Filler(inputs).ids == "tokens"
    with pytest.raises(DataError, match="takes no token ids: its inputs are 'a', 'b'"):
        Filler({"a": (I64, (None, None)), "b": (I64, (None, None))})


@pytest.mark.parametrize(
    ("inputs", "name"),
    [
        ({**IDS, "pixel_values": (np.dtype(np.float32), (1, 3, 8, 8))}, "pixel_values"),
        ({**IDS, "past_sequence": (None, None)}, "past_sequence"),
    ],
)
def test_what_text_cannot_fill_is_named(inputs: Inputs, name: str) -> None:
    with pytest.raises(DataError, match=f"text cannot fill input '{name}' of the model"):
        Filler(inputs)


@pytest.mark.parametrize(
    ("name", "past"),
    [
        ("past_key_values.0.key", True),
        ("cache_k_1", True),
        ("cache.3", True),
        ("cache_position", False),
        ("ids", False),
    ],
)
def test_inputs_of_the_cache_are_known_by_their_name(name: str, past: bool) -> None:
    assert is_past(name) is past
