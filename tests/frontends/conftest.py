"""A folder of a tiny model, which export reads."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.kit.architectures import MODELS

WORDS = ("[UNK]", "the", "The", "harbour", "was", "quiet", "at", "noon", ".", "A", ",")


@pytest.fixture(scope="module")
def llama_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder with safetensors and a tokenizer; nobody may change it."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    folder = tmp_path_factory.mktemp("llama.v1")
    MODELS["llama"]().save_pretrained(folder)
    words = Tokenizer(models.WordLevel({word: index for index, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.save(str(folder / "tokenizer.json"))
    about = {"tokenizer_class": "PreTrainedTokenizerFast", "unk_token": "[UNK]", "model_input_names": ["input_ids"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(about))
    return folder


@pytest.fixture
def folder(llama_folder: Path, tmp_path: Path) -> Path:
    """A copy of it to break."""
    return Path(shutil.copytree(llama_folder, tmp_path / "model"))
