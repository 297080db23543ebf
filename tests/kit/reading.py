"""Text for tests: sentences made of a few words, and real tokenizers that were trained on them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

if TYPE_CHECKING:
    from pathlib import Path


VOCABULARY = 128  # as many as the decoder of tests/kit/decoder.py has
BEGIN, END = "<s>", "</s>"
# The last 20 % of `two_parts` are made of words that are nowhere else: a window shows which part it is from.
LATE, BORDER = "zebra quartz. ", "u " * 40
WORDS = (
    "the a small large river mountain window kernel graph café naïve walks runs sleeps slowly under over near "
    "because never always green blue paper stone light"
).split()


def text(sentences: int, seed: int = 0) -> str:
    """So many sentences, one a line."""
    rng = np.random.default_rng([41, seed])
    lines = (" ".join(WORDS[i] for i in rng.integers(0, len(WORDS), rng.integers(4, 12))) for _ in range(sentences))
    return "".join(f"{line.capitalize()}.\n" for line in lines)


def tokenizer(folder: Path, *, begin: bool = True, end: bool = False, vocabulary: int = VOCABULARY) -> Path:
    """A byte-level BPE in `folder`/tokenizer.json, whose post-processor puts BEGIN in front and END behind if asked.

    It comes with the truncation and the padding of some training, as real ones do.
    """
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = sorted(
        {one for word in [text(50)] for piece in made.pre_tokenizer.pre_tokenize_str(word) for one in piece[0]}
    )
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary, special_tokens=[BEGIN, END], initial_alphabet=alphabet, show_progress=False
    )
    made.train_from_iterator([text(200)], trainer)
    pieces = [BEGIN] * begin + ["$A"] + [END] * end
    made.post_processor = processors.TemplateProcessing(single=" ".join(pieces), special_tokens=[(BEGIN, 0), (END, 1)])
    made.enable_truncation(8)
    made.enable_padding(length=8, pad_id=1, pad_token=END)
    folder.mkdir(parents=True, exist_ok=True)
    made.save(str(folder / "tokenizer.json"))
    return folder / "tokenizer.json"


def ids(file: Path, text: str) -> list[int]:
    """What the tokenizer itself makes of a text, without special tokens."""
    read = Tokenizer.from_file(str(file))
    read.no_truncation()
    read.no_padding()
    return list(read.encode(text, add_special_tokens=False).ids)


def decoded(file: Path, ids: list[int]) -> str:
    """The text of ids, special tokens left out."""
    return str(Tokenizer.from_file(str(file)).decode(ids, skip_special_tokens=True))


def two_parts(folder: Path) -> Path:
    """The folder, which gets tokenizer.json and a.txt, whose last fifth is unlike the rest."""
    tokenizer(folder)
    early = text(400)
    late = LATE * (len(early.encode()) // 4 // len(LATE))
    (folder / "a.txt").write_text(early + BORDER + late, encoding="utf8")
    return folder
