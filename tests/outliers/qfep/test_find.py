"""QFeP in the pipeline: recipe, stage, manifest, report, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from qcompiler.cli import commands, options
from qcompiler.compiler import compile
from qcompiler.data.source import Source
from qcompiler.errors import ModelError, UsageError
from qcompiler.ir import model as models
from qcompiler.outliers.qfep import find, proof
from qcompiler.passes.qfep.prefix import Prefix
from qcompiler.passes.qfep.prefix import run as prefix_of
from qcompiler.passes.qfep.sites import interface, is_baked
from qcompiler.planning.placement.scope import Scope
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import QfemTable, QfepTable, SafetyTable, SmoothQuantTable
from qcompiler.report import html, terminal
from qcompiler.runtime.session import Session
from qcompiler.target import parse_target
from qcompiler.verification.equivalence import UNDONE
from tests.kit import decoder, glu
from tests.kit.rewrite import content, model, to_graph

QUICK: dict[str, Any] = {
    "target": "onnxruntime",
    "smooth_quant": SmoothQuantTable(alpha="off"),
    "qfem": QfemTable(alpha="off"),
    "safety": SafetyTable(min_share=1.0),
    "verify_samples": 4,
}


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A decoder whose token 0, which begins every text, spikes."""
    path = tmp_path_factory.mktemp("qfep") / "planted.onnx"
    onnx.save(glu.stack(spiking=glu.SPIKING, layers=3), path)
    return path


@pytest.fixture(scope="module")
def cached(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("qfep") / "cached.onnx"
    onnx.save(decoder.decoder(), path)
    return path


def _quantize(source: Path, folder: Path, data: Any, prefix: Any = "auto", **changes: Any) -> compile.CompileResult:
    table = QfepTable(prefix=prefix, **changes)
    return compile.quantize(source, data=data, recipe=Recipe(qfep=table, **QUICK), output=folder / "out.qdq.onnx")


def _sqnr_db(expected: NDArray[np.float32], got: NDArray[np.float32]) -> float:
    return float(10 * np.log10((expected**2).sum() / ((expected - got) ** 2).sum()))


@pytest.fixture(scope="module")
def auto(planted: Path, tmp_path_factory: pytest.TempPathFactory) -> compile.CompileResult:
    return _quantize(planted, tmp_path_factory.mktemp("auto"), glu.feeds(8))


def test_spikes_vanish_and_int8_gains(auto: compile.CompileResult, planted: Path, tmp_path: Path) -> None:
    found = auto.manifest["qfep"]
    assert found["ids"] == [glu.TOKEN]
    assert found["baked"]
    assert found["drops_first"]
    assert found["relative_error"] <= 1e-4
    worst = max(found["layers"], key=lambda row: row["before"])
    assert worst["before"] > 100
    assert worst["after"] < worst["before"] / 10
    assert worst["reader"] in ("L1.DOWN", "L2.DOWN")
    observed = {row["tensor"]: row["ratio"] for row in auto.manifest["outliers"]}
    assert observed[worst["tensor"]] == pytest.approx(worst["after"], rel=0.5)  # seen again, behind the prefix
    plain = _quantize(planted, tmp_path, glu.feeds(8), "off")
    assert plain.manifest["qfep"] is None
    assert auto.verification is not None
    assert plain.verification is not None
    assert auto.verification.worst_sqnr_db > plain.verification.worst_sqnr_db + 6  # type: ignore[operator]


def test_what_is_quantized_is_the_model_behind_the_prefix(auto: compile.CompileResult, planted: Path) -> None:
    assert is_baked(auto.model.graph)
    (feed,) = glu.feeds(1, seed=9)
    expected = Session(planted).run(feed)["logits"][:, 1:]
    got = Session(auto.qdq_path).run({"ids": feed["ids"][:, 1:]})["logits"]
    assert _sqnr_db(expected, got) > 15


def test_the_prefix_is_written_beside_the_model(auto: compile.CompileResult) -> None:
    path = auto.qdq_path.with_name("out.prefix.npz")
    assert auto.manifest["files"]["prefix"]["name"] == auto.manifest["qfep"]["file"] == path.name
    assert Prefix.load(path).ids == (glu.TOKEN,)


def test_people_are_told(auto: compile.CompileResult) -> None:
    manifest = json.loads(auto.manifest_path.read_text())
    assert any("give the compiled model texts without it" in text for text in manifest["warnings"])
    (ran,) = (row for row in manifest["passes"] if row["pass"] == "bake-prefix")
    assert ran["changed"]
    assert ran["relative_error"] <= 1e-4
    rows = dict(terminal._summary_rows(manifest))
    assert rows["QFeP"].startswith(f"token {glu.TOKEN}: ")
    page = html.render(manifest)
    assert "<h2>QFeP</h2>" in page
    assert "behind the prefix" in page


def test_no_prefix_is_also_told(cached: Path, tmp_path: Path) -> None:
    data = [decoder.feeds(decoder.tokens(1, 12, seed)) for seed in range(4)]
    result = _quantize(cached, tmp_path, data)
    found = result.manifest["qfep"]
    assert found["ids"] == []
    assert not found["baked"]
    assert found["why"].startswith("no token spikes")
    assert not (tmp_path / "out.prefix.npz").exists()
    assert dict(terminal._summary_rows(result.manifest))["QFeP"].startswith("none: no token spikes")
    assert "No prefix: no token spikes" in html.render(result.manifest)


def test_given_tokens_are_baked_into_a_model_with_a_cache(cached: Path, tmp_path: Path) -> None:
    data = [decoder.feeds(decoder.tokens(1, 12, seed)) for seed in range(4)]
    result = _quantize(cached, tmp_path, data, [4, 2])
    assert result.manifest["qfep"]["rule"] == "given"
    assert result.manifest["qfep"]["ids"] == [4, 2]
    assert {one.name for one in result.model.graph.inputs} == set(data[0])
    got = Session(result.qdq_path).run(data[0])
    assert got["present.0.key"].shape[2] == 12


def test_a_prefix_can_be_left_to_the_caller(cached: Path, tmp_path: Path) -> None:
    data = [decoder.feeds(decoder.tokens(1, 12, seed)) for seed in range(4)]
    result = _quantize(cached, tmp_path, data, [4, 2], bake=False)
    found = result.manifest["qfep"]
    assert not found["baked"]
    assert found["file"] == "out.prefix.npz"
    assert not is_baked(result.model.graph)
    face = interface(models.load(cached).graph)
    with_prefix = Prefix.load(tmp_path / "out.prefix.npz").in_cache(data[0], face)
    expected = Session(cached).run(with_prefix)["logits"]
    assert _sqnr_db(expected, Session(result.qdq_path).run(with_prefix)["logits"]) > 15
    assert "to be given by the caller" in dict(terminal._summary_rows(result.manifest))["QFeP"]


def test_a_prefix_without_a_cache_cannot_be_left_to_the_caller(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"bake = false, but the model has no past_key_values inputs"):
        _quantize(planted, tmp_path, glu.feeds(4), bake=False)


def _other(folder: Path) -> tuple[Path, list[dict[str, Any]]]:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((64, 64)).astype(np.float32)}
    onnx.save(model(("MatMul", "x w", "y"), inputs={"x": ("batch", 64)}, weights=weights), folder / "mlp.onnx")
    return folder / "mlp.onnx", [{"x": rng.standard_normal((8, 64)).astype(np.float32)} for _ in range(2)]


def test_a_model_that_is_no_decoder_is_refused_where_tokens_are_given(tmp_path: Path) -> None:
    source, data = _other(tmp_path)
    with pytest.raises(ModelError, match="a prefix cannot be put in front of this model: the model takes no token ids"):
        _quantize(source, tmp_path, data, [1])


def test_a_model_that_is_no_decoder_is_compiled_without_one_where_it_is_searched(tmp_path: Path) -> None:
    source, data = _other(tmp_path)
    result = _quantize(source, tmp_path, data)
    assert result.manifest["qfep"]["ids"] == []
    assert any("a prefix cannot be put in front of this model" in text for text in result.manifest["warnings"])


def test_texts_that_fill_all_positions_leave_no_room(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="a text of 128 tokens cannot be read behind a prefix of 2"):
        _quantize(planted, tmp_path, glu.feeds(2, length=4 * glu.LENGTH), [3, 4])


def test_a_text_needs_a_tokenizer(planted: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="given as text needs a tokenizer"):
        _quantize(planted, tmp_path, glu.feeds(2), "text:Hello")


@pytest.mark.parametrize(
    ("flag", "prefix"),
    [("auto", "auto"), ("prefixquant", "prefixquant"), ("off", "off"), ("28,216", (28, 216)), ("text:a b", "text:a b")],
)
def test_the_option_is_the_key_of_the_recipe(flag: str, prefix: Any) -> None:
    parsed = options.parser().parse_args(["quantize", "m.onnx", "--qfep", flag])
    recipe = commands._recipe(parsed)
    assert recipe.qfep == QfepTable(prefix=prefix)
    assert Recipe.from_toml(recipe.to_toml()) == recipe
    assert Recipe.from_dict(json.loads(json.dumps(recipe.to_dict()))) == recipe


@pytest.mark.parametrize("wrong", ["outo", "", [], [-1], [1.5], "text:", "1,x", True])
def test_other_prefixes_are_refused(wrong: Any) -> None:
    with pytest.raises(UsageError, match="recipe key 'prefix' = .*: allowed is off, auto, prefixquant, token ids"):
        QfepTable(prefix=wrong)


def test_padding_is_no_text() -> None:
    face = interface(to_graph(decoder.decoder()))
    feed = decoder.feeds(decoder.tokens(2, 5))
    feed["attention_mask"][0, :3] = 0
    feed["attention_mask"][1, 1:] = 0
    (row,) = find.texts_of([feed], face)
    assert row.tolist() == feed["input_ids"][0, 3:].tolist()


def test_texts_are_read_behind_a_prefix_as_its_front_says() -> None:
    graph = to_graph(decoder.decoder())
    face, feed = interface(graph), decoder.feeds(decoder.tokens(1, 5))
    first = int(feed["input_ids"][0, 0])
    assert find.Front(face).feed(feed) is feed
    assert find.Front(face, first + 1).feed(feed) is feed
    dropped = find.Front(face, first).feed(feed)
    assert dropped["input_ids"].tolist() == feed["input_ids"][:, 1:].tolist()
    prefix = prefix_of(models.Model(graph, {}, None, 10), [4, 2])
    cached = find.Front(face, prefix=prefix).feed(feed)
    assert cached["past_key_values.0.key"].shape[2] == 2
    source = Source("texts", lambda: [feed], face.inputs, random=True, details={"windows": 1})
    moved = find.Front(face, first).through(source)
    assert (moved.name, moved.random, moved.details) == ("texts", True, {"windows": 1})
    for _ in range(2):  # as often as needed
        assert [one["input_ids"].shape for one in moved] == [(1, 4)]


def test_the_room_gives_another_model_and_leaves_the_one_it_was_given(planted: Path) -> None:
    loaded = models.load(planted)
    before, (inputs, feeds) = (
        content(loaded.graph),
        (interface(loaded.graph).inputs, glu.feeds(4)),
    )
    samples = Source("texts", lambda: feeds, inputs)
    found, _ = Scope(parse_target("onnxruntime")).layers(loaded)
    options = find.QfepOptions(QfepTable(prefix=(glu.TOKEN,)), None, quantizes=True)
    behind = find.put_in_front(loaded, loaded, samples, found, options)
    assert content(loaded.graph) == before
    assert behind.model is not loaded
    assert is_baked(behind.model.graph)
    assert behind.done is not None
    assert behind.done.front is not None
    assert behind.done.front.dropped == glu.TOKEN
    (report,) = behind.reports
    assert behind.errors == {report.name: behind.done.error}
    assert behind.warnings[0].startswith("the prefix has token 0, which all texts begin with")


@pytest.mark.parametrize("bake", [True, False])
def test_a_prefix_that_is_not_proven_is_undone(cached: Path, monkeypatch: pytest.MonkeyPatch, bake: bool) -> None:
    loaded = models.load(cached)
    inputs = interface(loaded.graph).inputs
    feed = interface(loaded.graph).filler.feed([[3, 4, 5, 6]])
    found, _ = Scope(parse_target("onnxruntime")).layers(loaded)
    options = find.QfepOptions(QfepTable(prefix=(1,), bake=bake), None, quantizes=True)
    monkeypatch.setattr(proof, "TOLERANCE", -1.0)
    behind = find.put_in_front(loaded, loaded, Source("texts", lambda: [feed], inputs), found, options)
    assert (behind.model, behind.reference, behind.front) == (loaded, loaded, None)
    assert behind.done is not None
    assert (behind.done.prefix, behind.done.found.ids, behind.done.found.why) == (None, (), UNDONE)
    assert "does not compute what it computes" in behind.reports[0].undone
