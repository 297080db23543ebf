"""Text becomes feeds: windows from the right part of the right files, for whatever inputs a language model has."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import qcompiler
from qcompiler.data.samples import Fingerprint
from qcompiler.data.source import open_source
from qcompiler.data.text import Text, feeds, fitted
from qcompiler.data.tokenizer import load_tokenizer
from qcompiler.errors import DataError, UsageError
from qcompiler.ir import model as models
from qcompiler.ir.decoder_io import embedding_rows
from qcompiler.ir.signature import Inputs, inputs_of
from qcompiler.runtime.session import Session
from tests.kit import decoder, glu, reading
from tests.kit.reading import BORDER, LATE

I64: np.dtype[Any] = np.dtype(np.int64)
IDS: Inputs = {"input_ids": (I64, ("batch", "sequence"))}


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return reading.two_parts(tmp_path_factory.mktemp("text"))


def windows(room: Path, name: str = "a.txt", **options: Any) -> list[list[int]]:
    return [one["input_ids"][0].tolist() for one in feeds(room / name, room, IDS, **options)()]


def refused(room: Path, *, path: Any = "a.txt", tokenizer: Any = None, inputs: Inputs = IDS, **options: Any) -> str:
    """The message of the DataError that reading ends with."""
    with pytest.raises(DataError) as caught:
        list(feeds(room / path, tokenizer or room, inputs, **options)())
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_windows_have_the_length_and_open_as_the_post_processor_says(room: Path) -> None:
    found = windows(room, length=40, samples=7)
    assert [len(one) for one in found] == [40] * 7
    assert all(one[0] == 0 and 0 not in one[1:] and 1 not in one for one in found)


def test_windows_end_as_the_post_processor_says(room: Path, tmp_path: Path) -> None:
    reading.tokenizer(tmp_path, begin=False, end=True)
    (one,) = feeds(room / "a.txt", tmp_path, IDS, length=16, samples=1)()
    assert one["input_ids"][0, -1] == 1
    assert set(one["input_ids"][0, :-1]) & {0, 1} == set()


def test_a_window_is_text_of_the_file(room: Path) -> None:
    whole = (room / "a.txt").read_text(encoding="utf8")
    for ids in windows(room, length=32, samples=12):
        assert reading.decoded(room / "tokenizer.json", ids) in whole


@given(length=st.integers(2, 60), samples=st.integers(1, 12), seed=st.integers(0, 99))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_calibration_and_evaluation_share_no_text(room: Path, length: int, samples: int, seed: int) -> None:
    file = room / "tokenizer.json"
    for part, late in (("calibration", False), ("evaluation", True)):
        for ids in windows(room, length=length, samples=samples, part=part, seed=seed):
            text = reading.decoded(file, ids)
            assert set(text) <= set(LATE + BORDER) if late else not set("zq") & set(text)


def test_windows_are_the_same_each_time_and_others_with_another_seed(room: Path) -> None:
    first = windows(room, length=24, samples=6)
    assert windows(room, length=24, samples=6) == first
    assert windows(room, length=24, samples=6, seed=1) != first
    assert len({tuple(one) for one in first}) == 6


def test_windows_are_spread_over_the_part(room: Path) -> None:
    whole = (room / "a.txt").read_text(encoding="utf8")
    early = whole[: whole.index("zebra")]
    places = [
        early.index(reading.decoded(room / "tokenizer.json", ids)) / len(early)
        for ids in windows(room, length=60, samples=8)
    ]
    assert all(abs(place - (i + 0.5) / 8) < 0.1 for i, place in enumerate(places))


def test_every_file_of_a_folder_gets_its_turn(room: Path, tmp_path: Path) -> None:
    for name, word in (("part2", "river"), ("part10", "stone"), ("part1", "paper")):
        (tmp_path / f"{name}.txt").write_text(f"{word} " * 400, encoding="utf8")
    found = [
        reading.decoded(room / "tokenizer.json", one["input_ids"][0].tolist()).split()[1]
        for one in feeds(tmp_path, room, IDS, length=24, samples=6)()
    ]
    assert found == ["paper", "river", "stone"] * 2


def test_a_short_text_gives_fewer_windows_unless_more_are_asked_for(room: Path, tmp_path: Path) -> None:
    (tmp_path / "short.txt").write_text(reading.text(20), encoding="utf8")
    assert 1 <= len(list(feeds(tmp_path / "short.txt", room, IDS, length=64)())) < 8
    assert len(list(feeds(tmp_path / "short.txt", room, IDS, length=64, samples=9)())) == 9


def test_a_mark_at_the_beginning_is_no_text(room: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain.txt"
    plain.write_text(reading.text(30), encoding="utf8")
    (tmp_path / "marked.txt").write_text(reading.text(30), encoding="utf-8-sig")
    reader = load_tokenizer(room)
    first, second = (
        Text(tmp_path / name, room, part="all").streams(reader, None) for name in ("plain.txt", "marked.txt")
    )
    assert first == second == [reading.ids(room / "tokenizer.json", reading.text(30))]


def test_characters_of_several_bytes_may_stand_at_any_border(room: Path, tmp_path: Path) -> None:
    (tmp_path / "dense.txt").write_text("é" * 4001, encoding="utf8")
    assert len(list(feeds(tmp_path / "dense.txt", room, IDS, length=20, samples=30)())) == 30
    assert len(list(feeds(tmp_path / "dense.txt", room, IDS, length=20, samples=30, part="evaluation")())) == 30


@pytest.mark.parametrize("cache", [True, False])
def test_feeds_run_in_a_decoder(room: Path, tmp_path: Path, cache: bool) -> None:
    onnx.save(decoder.decoder(cache=cache), tmp_path / "decoder.onnx")
    loaded = models.load(tmp_path / "decoder.onnx")
    source = open_source(Text(room / "a.txt", room, length=20), inputs_of(loaded.graph), samples=3)
    shapes = {Session(loaded).run(feed)["logits"].shape for feed in source}
    assert shapes == {(1, 20, decoder.VOCABULARY)}


def test_feeds_are_what_the_decoder_wants(room: Path, tmp_path: Path) -> None:
    onnx.save(decoder.decoder(), tmp_path / "decoder.onnx")
    (found,) = feeds(
        room / "a.txt", room, inputs_of(models.load(tmp_path / "decoder.onnx").graph), length=12, samples=1
    )()
    expected = decoder.feeds(found["input_ids"])
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(found[name], array, strict=True)


def test_a_model_whose_ids_have_a_name_of_their_own_is_fed_too(room: Path, tmp_path: Path) -> None:
    onnx.save(glu.stack(layers=1), tmp_path / "glu.onnx")
    loaded = models.load(tmp_path / "glu.onnx")
    assert embedding_rows(loaded.graph) == glu.VOCABULARY
    (found,) = feeds(room / "a.txt", room, inputs_of(loaded.graph), length=16, samples=1)()
    assert Session(loaded).run(found)["logits"].shape == (1, 16, glu.VOCABULARY)


def test_a_fixed_batch_gets_as_many_windows(room: Path) -> None:
    inputs: Inputs = {"input_ids": (I64, (4, 16))}
    found = list(feeds(room / "a.txt", room, inputs, samples=3)())
    assert [one["input_ids"].shape for one in found] == [(4, 16)] * 3
    assert len({tuple(row) for one in found for row in one["input_ids"].tolist()}) == 12


def test_an_image_model_is_refused(room: Path) -> None:
    message = refused(room, inputs={"image": (np.dtype(np.float32), (1, 3, 8, 8))})
    assert "takes no token ids: its inputs are 'image'" in message


def test_an_input_that_text_cannot_fill_is_named(room: Path) -> None:
    message = refused(room, inputs={**IDS, "encoder_hidden_states": (np.dtype(np.float32), (None, None, 8))})
    assert "text cannot fill input 'encoder_hidden_states'" in message


def test_the_tokenizer_of_another_model_is_told_by_its_ids(room: Path, tmp_path: Path) -> None:
    onnx.save(decoder.decoder(), tmp_path / "decoder.onnx")
    loaded = models.load(tmp_path / "decoder.onnx")
    other = reading.tokenizer(tmp_path, vocabulary=300)
    text = fitted(Text(room / "a.txt", other, length=64), loaded.graph)
    with pytest.raises(DataError, match=r"token id \d{3} .* the model's embedding has only 128 rows"):
        list(open_source(text, inputs_of(loaded.graph)))
    assert list(open_source(fitted(Text(room / "a.txt", room, length=64), loaded.graph), inputs_of(loaded.graph)))


def test_text_that_is_too_short_says_how_many_tokens_there_are(room: Path, tmp_path: Path) -> None:
    (tmp_path / "s.txt").write_text(reading.text(10), encoding="utf8")
    with pytest.raises(DataError, match=r"first 80 % of text file '.*s\.txt' has \d+ tokens, and a window takes 255"):
        feeds(tmp_path / "s.txt", room, IDS)
    (tmp_path / "empty.txt").touch()
    with pytest.raises(DataError, match="is empty; give longer text"):
        feeds(tmp_path / "empty.txt", room, IDS)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"plain \xe9 " * 300, "is not UTF-8: byte 0xe9 at offset 6"),
        ("word ".encode("utf-16-le") * 300, "has zero bytes: it is UTF-16 or no text"),
    ],
)
def test_what_is_not_utf8_is_named_with_its_place(room: Path, tmp_path: Path, content: bytes, says: str) -> None:
    (tmp_path / "x.txt").write_bytes(content)
    with pytest.raises(DataError, match=says):
        list(feeds(tmp_path / "x.txt", room, IDS, length=8, samples=2)())


def test_missing_files_are_named(room: Path, tmp_path: Path) -> None:
    assert "there is no text file" in refused(room, path="none.txt")
    assert "has no .txt file" in refused(room, path=tmp_path)
    assert "there is no tokenizer" in refused(room, tokenizer=tmp_path / "none.json")
    assert "has no tokenizer: neither tokenizer.json nor" in refused(room, tokenizer=tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert "cannot be read as a tokenizer" in refused(room, tokenizer=tmp_path)


def test_windows_must_fit_the_model_and_the_special_tokens(room: Path) -> None:
    fixed: Inputs = {"input_ids": (I64, (1, 16))}
    assert "the model takes exactly 16 tokens" in refused(room, inputs=fixed, length=32)
    assert len(next(feeds(room / "a.txt", room, fixed, samples=1)())["input_ids"][0]) == 16
    with pytest.raises(UsageError, match="must be at least 2"):
        Text(room / "a.txt", room, length=1)
    with pytest.raises(UsageError, match="there is no part 'test'"):
        Text(room / "a.txt", room, part="test")


def test_the_manifest_can_tell_texts_apart(room: Path, tmp_path: Path) -> None:
    def read(seed: int) -> tuple[str, dict[str, Any]]:
        source = open_source(qcompiler.Text(room / "a.txt", room, length=16, seed=seed), IDS, samples=4)
        prints = Fingerprint()
        for feed in source:
            prints.add(feed)
        return str(prints), source.details

    (first, details), (second, _) = read(0), read(1)
    assert first == read(0)[0] != second
    assert details["files"] == [{"name": "a.txt", "bytes": (room / "a.txt").stat().st_size}]
    assert (details["length"], details["part"], len(details["tokenizer_sha256"])) == (16, "calibration", 64)
