"""Modules of sentence-transformers compute what that library computes of them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qcompiler.errors import ModelError
from qcompiler.frontends.export import export
from qcompiler.frontends.pipeline import Listed, listed, pipeline
from qcompiler.frontends.sources import load
from qcompiler.runtime.session import Session
from tests.kit.architectures import MODELS

STATES = torch.randn(3, 5, 4, generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [0, 0, 1, 1, 1]])


class Given(torch.nn.Module):  # type: ignore[misc] # torch is not typed here
    """Stands in for the Transformer."""

    config, main_input_name = None, "input_ids"

    def forward(self, **_: Any) -> Any:
        return (STATES,)


def write(folder: Path, kinds: list[tuple[str, dict[str, Any]]]) -> tuple[Listed, ...]:
    """modules.json and the modules' configurations."""
    rows = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Transformer"}]
    for index, (kind, said) in enumerate(kinds, 1):
        path = f"{index}_{kind}"
        rows.append({"idx": index, "name": str(index), "path": path, "type": f"sentence_transformers.models.{kind}"})
        (folder / path).mkdir(exist_ok=True)
        (folder / path / "config.json").write_text(json.dumps(said))
    (folder / "modules.json").write_text(json.dumps(rows))
    return listed(folder)


def flags(*wanted: str) -> dict[str, Any]:
    known = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    return {"word_embedding_dimension": 4, **{f"pooling_mode_{one}": one in wanted for one in known}}


def by_hand(mode: str, row: int) -> Any:
    """One pooling of one text, as a loop over its tokens."""
    seen = [at for at in range(5) if MASK[row, at]]
    tokens = STATES[row]
    if mode == "cls":
        return tokens[0]
    if mode == "last":
        return tokens[seen[-1]]
    if mode == "max":
        return torch.stack([tokens[at] for at in seen]).amax(0)
    if mode == "weighted":
        return torch.stack([tokens[at] * (at + 1) for at in seen]).sum(0) / sum(at + 1 for at in seen)
    total = torch.stack([tokens[at] for at in seen]).sum(0)
    return total / (len(seen) ** 0.5 if mode == "root" else len(seen))


POOLINGS: dict[str, tuple[dict[str, Any], tuple[str, ...]]] = {
    "mean": (flags("mean_tokens"), ("mean",)),
    "cls": (flags("cls_token"), ("cls",)),
    "max": (flags("max_tokens"), ("max",)),
    "root": (flags("mean_sqrt_len_tokens"), ("root",)),
    "weighted": (flags("weightedmean_tokens"), ("weighted",)),
    "last": (flags("lasttoken"), ("last",)),
    "several": (flags("lasttoken", "mean_tokens", "cls_token"), ("cls", "mean", "last")),
    "by name": ({"pooling_mode": "lasttoken"}, ("last",)),
    "nothing said": ({"word_embedding_dimension": 4}, ("mean",)),
}


@pytest.mark.parametrize("case", POOLINGS)
def test_poolings_see_the_tokens_that_are_no_padding(case: str, tmp_path: Path) -> None:
    said, modes = POOLINGS[case]
    got = pipeline(Given(), write(tmp_path, [("Pooling", said)]))(attention_mask=MASK)
    want = torch.stack([torch.cat([by_hand(mode, row) for mode in modes]) for row in range(3)])
    torch.testing.assert_close(got, want)


def test_dense_norm_and_normalize_follow_in_their_order(tmp_path: Path) -> None:
    dense = {
        "in_features": 4,
        "out_features": 2,
        "bias": False,
        "activation_function": "torch.nn.modules.linear.Identity",
    }
    modules = write(tmp_path, [("Pooling", flags("cls_token")), ("Dense", dense), ("LayerNorm", {}), ("Normalize", {})])
    weight, scale, shift = torch.randn(2, 4), torch.rand(2) + 0.5, torch.randn(2)
    save_file({"linear.weight": weight}, tmp_path / "2_Dense" / "model.safetensors")
    save_file({"norm.weight": scale, "norm.bias": shift}, tmp_path / "3_LayerNorm" / "model.safetensors")
    got = pipeline(Given(), modules)(attention_mask=MASK)
    want = torch.nn.functional.layer_norm(STATES[:, 0] @ weight.T, (2,), scale, shift)
    torch.testing.assert_close(got, want / want.norm(dim=1, keepdim=True))


def without_weights(folder: Path) -> None:
    write(folder, [("Pooling", flags("mean_tokens")), ("Dense", {"activation_function": "torch.nn.Tanh"})])


def pickled(folder: Path) -> None:
    without_weights(folder)
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(b"never read")


def damaged(folder: Path) -> None:
    without_weights(folder)
    (folder / "2_Dense" / "model.safetensors").write_bytes(b"\xff" * 40)


def without_configuration(folder: Path) -> None:
    write(folder, [("Pooling", {})])
    (folder / "1_Pooling" / "config.json").unlink()


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "damaged": (lambda f: (f / "modules.json").write_text('[{"name": "0"}]'), "lists no modules"),
    "an unknown module": (lambda f: write(f, [("CNN", {})]), r"lists CNN \(1_CNN\), which is not known"),
    "an unknown pooling": (lambda f: write(f, [("Pooling", {"pooling_mode": "median"})]), "pools by median"),
    "no pooling": (lambda f: write(f, [("Pooling", flags())]), "pools by nothing"),
    "an unknown activation": (
        lambda f: write(f, [("Dense", {"activation_function": "my.Swirl"})]),
        "the activation 'Swirl'",
    ),
    "dense on tokens": (
        lambda f: write(f, [("Dense", {"module_input_name": "token_embeddings"})]),
        "'token_embeddings'",
    ),
    "no weights": (without_weights, "has no model.safetensors"),
    "pickled weights": (pickled, "nothing pickled is ever loaded"),
    "damaged weights": (damaged, "cannot load .*2_Dense/model.safetensors"),
    "no configuration": (without_configuration, "which modules.json needs"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_modules_that_cannot_be_made_are_named(case: str, tmp_path: Path) -> None:
    ruin, words = REFUSED[case]

    def made() -> None:
        ruin(tmp_path)
        pipeline(Given(), listed(tmp_path))

    with pytest.raises(ModelError, match=words):
        made()


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_a_folder_becomes_one_graph_up_to_the_embedding(inside: str, tmp_path: Path) -> None:
    model, folder = MODELS["bert"](), tmp_path / "model"
    model.save_pretrained(folder / inside)
    write(folder, [("Pooling", {"pooling_mode_mean_tokens": True}), ("Normalize", {})])
    rows = json.loads((folder / "modules.json").read_text())
    rows[0]["path"] = inside
    (folder / "modules.json").write_text(json.dumps(rows))
    made = export(folder, tmp_path / "out" / "m.onnx")
    assert made.kind == "sentence encoder"
    assert made.outputs["m.onnx"] == {"sentence_embedding": ("batch", 32)}
    ids, mask = np.arange(1, 13).reshape(2, 6), np.asarray([[1] * 6, [1] * 4 + [0] * 2])
    with torch.no_grad():
        states = model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()
    want = (states * mask[..., None]).sum(1) / mask.sum(1, keepdims=True)
    want /= np.linalg.norm(want, axis=1, keepdims=True)
    feeds = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
    session = Session(made.path)
    got = session.run({name: feeds[name] for name in session.inputs})["sentence_embedding"]
    np.testing.assert_allclose(got, want, atol=1e-5)


def test_a_language_model_is_taken_without_its_head(folder: Path) -> None:
    write(folder, [("Pooling", flags("lasttoken"))])
    found = load(folder, inputs=None, axes=None, trust_remote_code=False)
    assert type(found.module).__name__ == "LlamaModel"
    assert [one.kind for one in found.pipeline] == ["Pooling"]
