"""The test models are what the tests believe them to be."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from demo import drawing, lines, packages
from tests.kit import filetypes, models, speech


@pytest.mark.parametrize("name", models.NAMES)
def test_float_model_reaches_its_score_and_negated_outputs_do_not(name: str) -> None:
    model = models.get(name)
    run = model.float_run()
    answers: list[Sequence[models.Array]] = []

    def recorded(feeds: models.Feeds) -> Sequence[models.Array]:
        answers.append(run(feeds))
        return answers[-1]

    def negated(_: models.Feeds) -> list[models.Array]:
        return [-output for output in answers.pop(0)]

    # magika reads files of this machine, and drawn text depends a little on the version of FreeType.
    assert model.metric(recorded) == pytest.approx(model.score, rel=0.03)
    assert model.metric(negated) < 0.7 * model.score


@pytest.mark.parametrize("name", models.NAMES)
def test_feeds_fit_the_model_and_repeat(name: str) -> None:
    model = models.get(name)
    wanted = {value.name: len(value.shape) for value in models.opened(model.path).get_inputs()}
    for source in (model.calibration, model.evaluation):
        first, again = next(source()), next(source())
        assert {key: array.ndim for key, array in first.items()} == wanted
        assert all(np.array_equal(first[key], again[key]) for key in first)
        assert all(np.isfinite(array).all() for array in first.values())


@pytest.mark.parametrize("name", models.NAMES)
def test_calibration_and_evaluation_share_no_sample(name: str) -> None:
    model = models.get(name)
    seen, judged = ({_digest(feeds) for feeds in source()} for source in (model.calibration, model.evaluation))
    assert len(seen) > 1
    assert len(judged) > 1
    assert not seen & judged


def test_unknown_model_is_refused() -> None:
    with pytest.raises(KeyError, match="resnet"):
        models.get("resnet")


def test_download_of_another_file_than_the_pinned_one_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = packages.Package("magika", "1.0.3", "magika-1.0.3-py3-none-any.whl", "0" * 64)

    def fake_pip(command: list[str], **_: object) -> _Done:
        (tmp_path / package.filename).write_bytes(b"something else")
        return _Done(0)

    monkeypatch.setattr("demo.packages.subprocess.run", fake_pip)
    with pytest.raises(packages.FetchError, match="look at it before you change the pin"):
        packages._download(package, tmp_path)


def test_failed_download_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QCOMPILER_DOWNLOADS", str(tmp_path))
    monkeypatch.setattr("demo.packages.subprocess.run", lambda *_, **__: _Done(1, "no route to host"))
    with pytest.raises(packages.FetchError, match="no route to host.*Check the network"):
        packages.archive("magika")
    assert not list((tmp_path / "packages").glob("*.whl"))


def test_word_pieces_are_the_longest_ones_known() -> None:
    text, _ = models.reviews()[0]
    ids = models.wordpieces(text)
    assert ids[0] == models.START
    assert ids[-1] == models.STOP
    assert models.UNKNOWN not in ids
    assert models.wordpieces("") == [models.START, models.STOP]
    assert models.wordpieces("\u00e9") == [models.START, models.UNKNOWN, models.STOP]


def test_reviews_are_balanced_and_all_their_words_are_known() -> None:
    reviews = models.reviews()
    assert len(reviews) == 600
    assert 200 < sum(good for _, good in reviews) < 400
    assert all(models.UNKNOWN not in models.wordpieces(text) for text, _ in reviews)


def test_drawn_lines_repeat_and_differ() -> None:
    (image, text), (again, same), (_, other) = drawing.line(3), drawing.line(3), drawing.line(5)
    assert image.tobytes() == again.tobytes()
    assert text == same != other


def test_ctc_decoding_drops_blanks_and_repetitions() -> None:
    steps = np.eye(3, dtype=np.float32)[[0, 1, 1, 0, 1, 2, 2, 0]][None]
    assert lines.decode(steps, ["", "a", "b"]) == ["aab"]


@pytest.mark.parametrize(
    ("read", "accuracy"), [("text", 1.0), ("tet", 0.75), ("", 0.0), ("xtext", 0.75), ("abcdfghi", -1.0)]
)
def test_character_accuracy_counts_edits(read: str, accuracy: float) -> None:
    assert lines.character_accuracy([read], ["text"]) == accuracy


def test_file_features_hold_both_ends_without_white_space() -> None:
    row = filetypes.features(b"  ab  ")
    assert row[:4].tolist() == [97, 98, 32, 32]
    assert row[-4:].tolist() == [32, 32, 97, 98]
    assert (row[4:-4] == 256).all()


def test_noise_is_mixed_at_the_ratio_asked_for() -> None:
    clean, noisy = speech.noisy(1, 2, 5.0)
    ratio = 10 * np.log10((clean**2).mean() / ((noisy - clean) ** 2).mean())
    assert ratio == pytest.approx(5.0, abs=0.01)


class _Done:
    """What subprocess.run returns, as far as it is looked at."""

    def __init__(self, returncode: int, stderr: str = "") -> None:
        self.returncode = returncode
        self.stderr = stderr


def _digest(feeds: models.Feeds) -> str:
    return hashlib.sha256(b"".join(feeds[key].tobytes() for key in sorted(feeds))).hexdigest()
