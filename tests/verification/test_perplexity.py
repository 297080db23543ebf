"""Perplexity is what a plain computation says, counts every token once, and is the same with and without a cache."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import qcompiler
from qcompiler.cli import main
from qcompiler.errors import AccuracyError, DataError, ModelError, UsageError
from qcompiler.ir import model as models
from qcompiler.ir.signature import Inputs, inputs_of
from qcompiler.recipe.recipe import Recipe
from qcompiler.recipe.tables import TextTable
from qcompiler.runtime.session import Session
from qcompiler.runtime.token_feeds import Filler
from qcompiler.verification import perplexity
from qcompiler.verification.compare import verify
from qcompiler.verification.gates import Gates
from qcompiler.verification.metric import Outputs
from tests.kit import decoder, glu, reading

if TYPE_CHECKING:
    from numpy.typing import NDArray


I64: np.dtype[Any] = np.dtype(np.int64)
IDS: Inputs = {"input_ids": (I64, ("batch", "sequence"))}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """tokenizer.json (with a begin-of-text token), text.txt, and the decoder with its cache and without."""
    folder = tmp_path_factory.mktemp("perplexity")
    reading.tokenizer(folder)
    (folder / "text.txt").write_text(reading.text(150), encoding="utf8")
    onnx.save(decoder.decoder(cache=False), folder / "plain.onnx")
    onnx.save(decoder.decoder(), folder / "cached.onnx")
    return folder


def plainly(session: Session, name: str, ids: list[int], before: list[int], length: int, stride: int) -> float:
    """Token by token, each in the window that counts it, in float64: nothing of the product's code."""
    body = length - len(before)
    losses = []
    for token in range(1, len(ids)):
        window = 0 if token < body else (token - body) // stride + 1
        end = min(body + window * stride, len(ids))
        fed = [*before, *ids[max(0, end - body) : end]]
        row = session.run({name: np.array([fed])})["logits"][0, token - end - 1].astype(np.float64)
        losses.append(np.log(np.exp(row - row.max()).sum()) + row.max() - row[ids[token]])
    return math.exp(float(np.mean(losses)))


@pytest.mark.parametrize(("begin", "length", "stride"), [(True, 24, 8), (False, 24, 23), (True, 24, 5), (False, 2, 1)])
def test_it_is_what_a_computation_token_by_token_says(
    room: Path, tmp_path: Path, begin: bool, length: int, stride: int
) -> None:
    file = reading.tokenizer(tmp_path, begin=begin)
    (tmp_path / "t.txt").write_text(reading.text(8), encoding="utf8")
    onnx.save(glu.stack(layers=1), tmp_path / "glu.onnx")
    loaded = models.load(tmp_path / "glu.onnx")
    session = Session(loaded)
    metric = perplexity.metric(
        tmp_path / "t.txt", tmp_path, inputs_of(loaded.graph), length=length, stride=stride, part="all"
    )
    ids = reading.ids(file, reading.text(8))
    expected = plainly(session, "ids", ids, [0] if begin else [], length, stride)
    assert metric(session.run) == pytest.approx(expected, rel=1e-6)
    assert metric.details["tokens"] == len(ids) - 1


@given(tokens=st.integers(2, 400), length=st.integers(2, 80), share=st.floats(0, 1), before=st.integers(0, 1))
def test_every_token_but_the_first_is_counted_once_with_enough_context(
    tokens: int, length: int, share: float, before: int
) -> None:
    length += before
    stride = max(1, round(share * (length - 1)))
    cut = perplexity.cut(range(100, 100 + tokens), length, stride, [7] * before)
    counted = [int(one) for window in cut for one in window.ids[-window.counted :]]
    assert counted == list(range(101, 100 + tokens))
    assert all(2 <= len(window.ids) <= length for window in cut)
    assert all(window.ids[0] == 7 for window in cut if before)
    assert all(len(window.ids) == length and length - window.counted >= length - stride for window in cut[1:])


@pytest.mark.parametrize(("stride", "before"), [(0, 0), (16, 0), (16, 1), (15, 2)])
def test_a_stride_that_leaves_a_token_without_context_is_refused(stride: int, before: int) -> None:
    with pytest.raises(UsageError, match=f"a stride of {stride} does not fit windows of 16 tokens: choose 1 to "):
        perplexity.cut(range(100), 16, stride, [7] * before)


@pytest.mark.parametrize("length", [3, 17, 40, 64])
def test_with_cache_and_without_it_is_the_same(room: Path, length: int) -> None:
    scores = []
    for name, cached in (("plain", False), ("cached", False), ("cached", True)):
        loaded = models.load(room / f"{name}.onnx")
        metric = perplexity.metric(
            room / "text.txt",
            room,
            inputs_of(loaded.graph),
            length=length,
            stride=length // 2,
            tokens=150,
            cached=cached,
        )
        scores.append(metric(Session(loaded).run))
    assert scores[0] > 1
    assert scores[1:] == pytest.approx(scores[:1] * 2, rel=1e-5)


def test_steps_with_cache_end_with_a_single_token(room: Path) -> None:
    loaded = models.load(room / "cached.onnx")
    session, seen = Session(loaded), []

    def run(feeds: Any) -> Any:
        seen.append((feeds["input_ids"].shape[1], feeds["past_key_values.0.key"].shape[2]))
        return session.run(feeds)

    metric = perplexity.metric(room / "text.txt", room, inputs_of(loaded.graph), length=64, tokens=60, cached=True)
    metric(run)
    assert metric.runs == len(seen)
    assert seen == [(30, 0), (16, 30), (13, 46), (1, 59)]  # 60 tokens and one in front; the last predicts nothing


def test_a_prefix_in_the_cache_shifts_the_positions(room: Path) -> None:
    loaded = models.load(room / "cached.onnx")
    session = Session(loaded)
    front = [3, 5, 9]
    outputs = session.run(decoder.feeds(np.array([front])))
    past = {name.replace("present", "past_key_values"): outputs[name] for name in outputs if "present" in name}
    whole = perplexity.metric(room / "text.txt", room, inputs_of(loaded.graph), length=48, tokens=46, past=past)
    (window,) = whole.windows
    longer = perplexity.Window(np.array([*front, *window.ids]), window.counted)
    expected = perplexity.perplexity(session.run, [longer], filler=whole.filler)
    assert whole(session.run) == pytest.approx(expected, rel=1e-5)
    stepped = perplexity.metric(
        room / "text.txt", room, inputs_of(loaded.graph), length=48, tokens=46, past=past, cached=True
    )
    assert stepped(session.run) == pytest.approx(expected, rel=1e-5)
    bare = perplexity.metric(room / "text.txt", room, inputs_of(loaded.graph), length=48, tokens=46)
    assert bare(session.run) != pytest.approx(expected, rel=1e-4)


@given(
    rows=st.integers(1, 5),
    vocabulary=st.integers(2, 3000),
    scale=st.sampled_from([0.0, 1.0, 1e4]),
    dtype=st.sampled_from([np.float16, np.float32, np.float64]),
    seed=st.integers(0, 99),
)
@settings(deadline=None)
def test_losses_are_exact_for_any_float_type(
    rows: int, vocabulary: int, scale: float, dtype: type[Any], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((rows, vocabulary))).astype(dtype)
    targets = rng.integers(0, vocabulary, rows)
    wide = logits.astype(np.float64)
    top = wide.max(-1, keepdims=True)
    exact = (np.log(np.exp(wide - top).sum(-1)) + top[:, 0]) - wide[np.arange(rows), targets]
    np.testing.assert_allclose(perplexity.losses(logits, targets), exact, rtol=2e-6, atol=2e-6)


def test_a_uniform_model_is_as_perplexed_as_its_vocabulary_is_large() -> None:
    windows = perplexity.cut(range(50), 20, 10)
    run = lambda feeds: [np.zeros((*feeds["input_ids"].shape, 77), np.float32)]  # noqa: E731
    assert perplexity.perplexity(run, windows, filler=Filler(IDS)) == pytest.approx(77, rel=1e-6)


def test_logits_that_are_not_finite_make_it_no_number_without_a_warning() -> None:
    def run(feeds: Any) -> list[NDArray[np.float32]]:
        logits = np.zeros((*feeds["input_ids"].shape, 77), np.float32)
        logits[0, 3, 4] = np.nan
        return [logits]

    assert math.isnan(perplexity.perplexity(run, perplexity.cut(range(50), 20, 10), filler=Filler(IDS)))


def test_a_fixed_batch_and_length_are_served(room: Path) -> None:
    inputs: Inputs = {"input_ids": (I64, (3, 16))}
    session = Session(models.load(room / "plain.onnx"))
    shapes = set()

    def run(feeds: Any) -> Any:
        shapes.add(feeds["input_ids"].shape)
        return session.run(feeds)

    fixed = perplexity.metric(room / "text.txt", room, inputs, tokens=100)
    free = perplexity.metric(room / "text.txt", room, IDS, length=16, tokens=100)
    assert fixed(run) == pytest.approx(free(session.run), rel=1e-6)
    assert shapes == {(3, 16)}


def test_text_shorter_than_a_window_is_one_window_where_the_length_is_free(room: Path, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text("The river runs. " * 3, encoding="utf8")
    found = perplexity.metric(tmp_path / "s.txt", room, IDS, length=500, part="all")
    assert len(found.windows) == 1
    with pytest.raises(DataError, match="the model takes exactly 500"):
        perplexity.metric(tmp_path / "s.txt", room, {"input_ids": (I64, (1, 500))}, part="all")
    (tmp_path / "tiny.txt").write_text(" a", encoding="utf8")
    with pytest.raises(DataError, match="too short to predict anything|is empty"):
        perplexity.metric(tmp_path / "tiny.txt", room, IDS)


def test_files_share_the_tokens_evenly(room: Path, tmp_path: Path) -> None:
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(reading.text(60, seed=ord(name)), encoding="utf8")
    found = perplexity.metric(tmp_path, room, IDS, length=16, tokens=100)
    assert found.details["tokens"] == 2 * (50 - 1)


def test_the_tokenizer_of_another_model_is_refused(room: Path, tmp_path: Path) -> None:
    other = reading.tokenizer(tmp_path, vocabulary=300)
    with pytest.raises(DataError, match="embedding has only 128 rows"):
        perplexity.metric(room / "text.txt", other, IDS, rows=decoder.VOCABULARY)
    run = lambda feeds: [np.zeros((*feeds["input_ids"].shape, 77), np.float32)]  # noqa: E731
    with pytest.raises(DataError, match="beyond the 77 logits of the model"):
        perplexity.metric(room / "text.txt", room, IDS)(run)


@pytest.mark.parametrize("shape", [(1, 768), (1, 1, 77), (1, 20, 5, 7)])
def test_outputs_that_are_no_logits_are_refused(shape: tuple[int, ...]) -> None:
    windows = perplexity.cut(range(50), 20, 10)
    with pytest.raises(ModelError, match=r"perplexity needs logits of shape \[batch, 20, vocabulary\]"):
        perplexity.perplexity(lambda _: [np.zeros(shape, np.float32)], windows, filler=Filler(IDS))


def test_a_cache_that_no_output_continues_is_refused(room: Path) -> None:
    loaded = models.load(room / "cached.onnx")
    session = Session(loaded, outputs=["logits"])
    metric = perplexity.metric(room / "text.txt", room, inputs_of(loaded.graph), length=16, tokens=30, cached=True)
    with pytest.raises(ModelError, match=r"'past_key_values.0.key' and no output .* such as 'present.0.key'"):
        metric(session.run)
    with pytest.raises(UsageError, match="perplexity-cached needs a model with past_key_values"):
        perplexity.metric(room / "text.txt", room, IDS, cached=True)


def test_the_metric_takes_what_verification_gives(room: Path) -> None:
    loaded = models.load(room / "cached.onnx")
    session = Session(loaded)
    metric = perplexity.metric(room / "text.txt", room, inputs_of(loaded.graph), length=16, tokens=30, cached=True)
    assert metric(lambda feeds: Outputs(session.run(feeds))) == metric(session.run)


def test_lower_is_better_in_the_gate(room: Path) -> None:
    loaded = models.load(room / "plain.onnx")
    metric = perplexity.metric(room / "text.txt", room, inputs_of(loaded.graph), length=16, tokens=60)
    session, steps = Session(loaded), []

    def worse(feeds: Any) -> Any:  # surer of what is wrong: the weights are random
        return {"logits": session.run(feeds)["logits"] * np.float32(3)}

    found = verify(
        loaded, worse, [{"input_ids": np.array([[1, 2, 3]])}], metric=metric, advance=lambda: steps.append(1)
    )
    assert found.score is not None
    assert not found.score.higher_is_better
    assert found.score.drop == pytest.approx(found.score.quantized_score / found.score.float_score - 1)
    assert len(steps) == 1 + 2 * metric.runs
    assert found.score.drop > 0
    with pytest.raises(AccuracyError, match=r"a rise of \d"):
        Gates(max_drop=found.score.drop / 2).require(found)
    Gates(max_drop=found.score.drop * 2).require(found)


def test_compiling_compares_on_held_out_text_and_tells_the_protocol(room: Path, tmp_path: Path) -> None:
    result = qcompiler.quantize(
        room / "plain.onnx",
        data=qcompiler.Text(room / "text.txt", room, length=32),
        recipe=Recipe(
            target="onnxruntime",
            metric="perplexity",
            samples=4,
            verify_samples=2,
            text=TextTable(tokens=120, stride=8),
            smooth_quant={"alpha": "off"},  # type: ignore[arg-type]
        ),
        output=tmp_path / "o.qdq.onnx",
    )
    record = json.loads(result.manifest_path.read_text())
    score = record["verification"]["score"]
    assert record["verification"]["data"] == "text 'text.txt' (last 20 %)"
    assert (record["data"]["part"], record["data"]["feeds"], record["data"]["length"]) == ("calibration", 4, 32)
    assert (record["recipe"]["text"]["length"], record["recipe"]["text"]["tokenizer"]) == (32, room.as_posix())
    assert (score["details"]["tokens"], score["details"]["length"], score["details"]["stride"]) == (119, 32, 8)
    assert score["higher_is_better"] is False
    loaded = models.load(room / "plain.onnx")
    expected = perplexity.metric(room / "text.txt", room, inputs_of(loaded.graph), length=32, stride=8, tokens=120)(
        Session(loaded).run
    )
    assert score["float_score"] == pytest.approx(expected, rel=1e-6)
    assert score["quantized_score"] != score["float_score"]


def test_the_command_line_verifies_by_perplexity(room: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "recipe.toml"
    file.write_text("[text]\ntokens = 64\n")
    line = ["verify", str(room / "cached.onnx"), str(room / "cached.onnx"), "--text", str(room / "text.txt")]
    line += ["--recipe", str(file), "--length", "16", "--samples", "2", "--json", "--quiet", "--max-drop", "0"]
    scores = []
    for metric in ("perplexity", "perplexity-cached"):
        assert main.main([*line, "--metric", metric]) == 0
        scores.append(json.loads(capfd.readouterr().out)["score"])
    assert scores[0]["details"]["tokens"] == 63
    assert scores[0]["float_score"] == pytest.approx(scores[1]["float_score"], rel=1e-5)
    assert [one["details"]["cached"] for one in scores] == [False, True]
