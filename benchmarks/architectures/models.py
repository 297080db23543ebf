"""The models of `benchmarks.architectures`: tiny configurations, seeded weights, tokenizers and data for them."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np
import tokenizers
import torch
import transformers as tf

VOCABULARY: Final = 512
LENGTH: Final = 32
WORDS: Final = 400
SMALL: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
DECODER: Final[dict[str, Any]] = {**SMALL, "num_key_value_heads": 2, "max_position_embeddings": 256}
VISION: Final[dict[str, Any]] = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 64,
    "patch_size": 16,
}
LABELS: Final = {"num_labels": 10}


@dataclass(frozen=True)
class Model:
    """One architecture.

    Attributes:
        make: the module, weights as transformers draws them.
        kind: what it is, for the page.
        reads: what its samples hold: "tokens", "picture", "sound", "mel".
        text: its data is text (decoders, by --text).
        parts: it becomes several files.
        preprocessor: what preprocessor_config.json holds.
        size: of its pictures.
        queries: what its query weights are multiplied by, for attention that leaves its scores as they are.
    """

    make: Callable[[], Any]
    kind: str
    reads: tuple[str, ...] = ("tokens",)
    text: bool = False
    parts: bool = False
    preprocessor: Mapping[str, Any] = field(default_factory=dict)
    size: int = 64
    queries: float = 1.0


def _encoder(config: str, cls: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(tf, cls)(getattr(tf, config)(**SMALL, max_position_embeddings=130, **LABELS, **more))


def _decoder(config: str, cls: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(tf, cls)(getattr(tf, config)(**(DECODER | more)))


def _vit(config: str, cls: str, **more: Any) -> Callable[[], Any]:
    return lambda: getattr(tf, cls)(getattr(tf, config)(**{**VISION, **LABELS, **more}))


def _distilbert() -> Any:
    sizes = {"vocab_size": VOCABULARY, "dim": 128, "hidden_dim": 256, "n_layers": 2, "n_heads": 4, **LABELS}
    return tf.DistilBertForSequenceClassification(tf.DistilBertConfig(**sizes, max_position_embeddings=128))


def _t5() -> Any:
    sizes = {"vocab_size": VOCABULARY, "d_model": 128, "d_kv": 32, "d_ff": 256, "num_layers": 2, "num_heads": 4}
    return tf.T5ForConditionalGeneration(
        tf.T5Config(**sizes, feed_forward_proj="gated-gelu", decoder_start_token_id=0, pad_token_id=0, eos_token_id=2)
    )


ENCODER_DECODER: Final[dict[str, Any]] = {
    "vocab_size": VOCABULARY,
    "d_model": 128,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 256,
    "decoder_ffn_dim": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 1,
}


def _bart() -> Any:
    return tf.BartForConditionalGeneration(
        tf.BartConfig(**ENCODER_DECODER, max_position_embeddings=128, forced_eos_token_id=None)
    )


def _whisper() -> Any:
    return tf.WhisperForConditionalGeneration(
        tf.WhisperConfig(
            **ENCODER_DECODER, num_mel_bins=40, max_source_positions=100, max_target_positions=64,
            suppress_tokens=None, begin_suppress_tokens=None,
        )
    )  # fmt: skip


def _wav2vec2() -> Any:
    return tf.Wav2Vec2ForCTC(
        tf.Wav2Vec2Config(
            **(SMALL | {"vocab_size": 32}), conv_dim=(64,) * 4, conv_stride=(5, 4, 2, 2), conv_kernel=(10, 8, 4, 4),
            num_feat_extract_layers=4, num_conv_pos_embeddings=16, num_conv_pos_embedding_groups=4,
        )
    )  # fmt: skip


def _swin() -> Any:
    return tf.SwinForImageClassification(
        tf.SwinConfig(
            image_size=64, patch_size=4, embed_dim=48, depths=[2, 2], num_heads=[3, 6], window_size=4, **LABELS
        )
    )


def _convnext() -> Any:
    return tf.ConvNextForImageClassification(
        tf.ConvNextConfig(hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 2, 1], image_size=64, **LABELS)
    )


def _segformer() -> Any:
    return tf.SegformerForSemanticSegmentation(
        tf.SegformerConfig(
            hidden_sizes=[32, 64, 96, 128], depths=[1, 1, 1, 1], num_attention_heads=[1, 2, 3, 4],
            decoder_hidden_size=64, **LABELS,
        )
    )  # fmt: skip


def _detr() -> Any:
    backbone = tf.ResNetConfig(
        embedding_size=32,
        hidden_sizes=[32, 64, 96, 128],
        depths=[1, 1, 1, 1],
        layer_type="basic",
        out_features=["stage4"],
    )
    sizes = {key: ENCODER_DECODER[key] for key in ENCODER_DECODER if "_id" not in key and key != "vocab_size"}
    return tf.DetrForObjectDetection(
        tf.DetrConfig(
            use_timm_backbone=False, use_pretrained_backbone=False, backbone=None, backbone_config=backbone,
            num_queries=20, **sizes, **LABELS,
        )
    )  # fmt: skip


def _sam() -> Any:
    vision = tf.SamVisionConfig(
        hidden_size=64, mlp_dim=128, num_hidden_layers=2, num_attention_heads=4, image_size=64, patch_size=8,
        output_channels=32, window_size=4, global_attn_indexes=[1], num_pos_feats=16,
    )  # fmt: skip
    prompt = tf.SamPromptEncoderConfig(hidden_size=32, image_size=64, patch_size=8, mask_input_channels=8)
    masks = tf.SamMaskDecoderConfig(hidden_size=32, mlp_dim=64, num_attention_heads=4, iou_head_hidden_dim=32)
    return tf.SamModel(
        tf.SamConfig(
            vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict(), mask_decoder_config=masks.to_dict()
        )
    )


def _clip() -> Any:
    text = tf.CLIPTextConfig(**SMALL, max_position_embeddings=LENGTH, projection_dim=64)
    vision = tf.CLIPVisionConfig(**VISION, projection_dim=64)
    return tf.CLIPModel(tf.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=64))


def _siglip() -> Any:
    text = tf.SiglipTextConfig(**SMALL, max_position_embeddings=LENGTH)
    vision = tf.SiglipVisionConfig(**VISION)
    return tf.SiglipModel(tf.SiglipConfig(text_config=text.to_dict(), vision_config=vision.to_dict()))


def _llava() -> Any:
    text = tf.LlamaConfig(**DECODER)
    vision = tf.CLIPVisionConfig(**VISION)
    return tf.LlavaForConditionalGeneration(
        tf.LlavaConfig(text_config=text, vision_config=vision, image_token_index=VOCABULARY - 1, image_seq_length=16)
    )


def _falcon() -> Any:
    sizes = {key: DECODER[key] for key in DECODER if key not in ("intermediate_size", "num_key_value_heads")}
    return tf.FalconForCausalLM(tf.FalconConfig(**sizes, multi_query=True, new_decoder_architecture=False, bias=False))


def _gpt2() -> Any:
    return tf.GPT2LMHeadModel(
        tf.GPT2Config(
            vocab_size=VOCABULARY, n_embd=128, n_layer=2, n_head=4, n_positions=256, bos_token_id=1, eos_token_id=2
        )
    )


def _mamba() -> Any:
    return tf.MambaForCausalLM(
        tf.MambaConfig(vocab_size=VOCABULARY, hidden_size=128, num_hidden_layers=2, state_size=8, pad_token_id=0)
    )


GEMMA: Final[dict[str, Any]] = {
    "head_dim": 32,
    "query_pre_attn_scalar": 32,
    "sliding_window": 16,
    "layer_types": ["sliding_attention", "full_attention"],
}
PICTURE: Final = {"image_processor_type": "ViTImageProcessor", "size": {"height": 64, "width": 64}}
SOUND: Final = {"feature_extractor_type": "Wav2Vec2FeatureExtractor", "sampling_rate": 16000, "do_normalize": True}
MODELS: Final[Mapping[str, Model]] = {
    "bert": Model(_encoder("BertConfig", "BertForSequenceClassification"), "encoder"),
    "roberta": Model(_encoder("RobertaConfig", "RobertaForTokenClassification"), "encoder"),
    "distilbert": Model(_distilbert, "encoder"),
    "deberta": Model(
        _encoder(
            "DebertaV2Config", "DebertaV2ForSequenceClassification", relative_attention=True, position_buckets=16,
            pos_att_type=["p2c", "c2p"], norm_rel_ebd="layer_norm", share_att_key=True, position_biased_input=False,
        ), "encoder",
    ),
    "modernbert": Model(
        _encoder(
            "ModernBertConfig", "ModernBertForSequenceClassification", local_attention=16, global_attn_every_n_layers=2,
            cls_token_id=1, sep_token_id=2,
        ), "encoder",
    ),
    "t5": Model(_t5, "encoder-decoder", parts=True, queries=32**-0.5),  # T5 divides no score by the root of d_kv
    "bart": Model(_bart, "encoder-decoder", parts=True),
    "whisper": Model(_whisper, "speech", ("mel",), parts=True),
    "wav2vec2": Model(_wav2vec2, "speech", ("sound",), preprocessor=SOUND),
    "vit": Model(_vit("ViTConfig", "ViTForImageClassification"), "vision", ("picture",)),
    "dinov2": Model(_vit("Dinov2Config", "Dinov2Model"), "vision", ("picture",)),
    "swin": Model(_swin, "vision", ("picture",)),
    "convnext": Model(_convnext, "vision", ("picture",)),
    "segformer": Model(_segformer, "segmentation", ("picture",), preprocessor=PICTURE),
    "detr": Model(_detr, "detection", ("picture",), preprocessor=PICTURE),
    "sam": Model(_sam, "segmentation by prompt", ("picture", "points"), parts=True),
    "clip": Model(_clip, "dual encoder", ("tokens", "picture"), parts=True),
    "siglip": Model(_siglip, "dual encoder", ("tokens", "picture"), parts=True),
    "llava": Model(_llava, "vision-language", ("tokens", "picture"), parts=True),
    "llama": Model(_decoder("LlamaConfig", "LlamaForCausalLM"), "decoder", text=True),
    "qwen2": Model(_decoder("Qwen2Config", "Qwen2ForCausalLM", tie_word_embeddings=True), "decoder", text=True),
    "qwen3": Model(_decoder("Qwen3Config", "Qwen3ForCausalLM", head_dim=32), "decoder", text=True),
    "gemma2": Model(_decoder("Gemma2Config", "Gemma2ForCausalLM", **GEMMA), "decoder", text=True),
    "gemma3": Model(_decoder("Gemma3TextConfig", "Gemma3ForCausalLM", **GEMMA), "decoder", text=True),
    "phi3": Model(_decoder("Phi3Config", "Phi3ForCausalLM"), "decoder", text=True),
    "mixtral": Model(
        _decoder("MixtralConfig", "MixtralForCausalLM", num_local_experts=4, num_experts_per_tok=2),
        "decoder", text=True,
    ),
    "olmo": Model(_decoder("OlmoConfig", "OlmoForCausalLM"), "decoder", text=True),
    "falcon": Model(_falcon, "decoder", text=True),
    "gpt2": Model(_gpt2, "decoder", text=True),
    "mamba": Model(_mamba, "state space", text=True),
}  # fmt: skip


def write(model: Model, folder: Path) -> None:
    """The folder of a model as its makers would publish it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        module = model.make()
        _touch(module, model.queries)
    module.eval().save_pretrained(folder)
    if "tokens" in model.reads or (model.parts and model.kind in ("encoder-decoder",)):
        _tokenizer(folder)
    if model.preprocessor:
        (folder / "preprocessor_config.json").write_text(json.dumps(model.preprocessor))


def _touch(module: Any, queries: float) -> None:
    """What trained weights have: rows of different size, normalisations with a few large channels.

    Queries as large as keys would make attention without a division choose one token, and another one after rounding.
    """
    for name, weight in module.named_parameters():
        if "norm" in name.lower() and weight.dim() == 1 and name.endswith("weight"):
            weight.data = torch.exp(0.2 * torch.randn_like(weight)) * (weight.data.abs() if weight.data.any() else 1)
            weight.data[torch.randperm(weight.numel())[: max(1, weight.numel() // 64)]] *= 3
        elif weight.dim() > 1 and "embed" not in name.lower():
            spread = torch.exp(0.3 * torch.randn(weight.shape[0], *(1 for _ in weight.shape[1:])))
            weight.data = torch.randn_like(weight) * spread * weight[0].numel() ** -0.5
            weight.data *= queries if name.endswith("ttention.q.weight") else 1
        elif weight.dim() > 1:
            weight.data = torch.randn_like(weight) * 0.3
        elif weight.dim() == 1 and name.endswith("bias"):
            weight.data = weight.data + 0.05 * torch.randn_like(weight)


def _words() -> list[str]:
    random, letters = np.random.default_rng(7), "etaoinshrdlu"
    found: dict[str, None] = {}
    while len(found) < WORDS:
        found["".join(random.choice(list(letters), int(random.integers(2, 8))))] = None
    return list(found)


def prose(count: int, seed: int) -> str:
    """Words as frequent as words are, some of which like to follow each other."""
    random, words = np.random.default_rng(seed), _words()
    chances = 1 / np.arange(2, WORDS + 2)
    picked = random.choice(WORDS, count, p=chances / chances.sum())
    follow = random.random(count) < 0.3
    for at in range(1, count):
        if follow[at]:
            picked[at] = (picked[at - 1] * 7 + 3) % WORDS
    return " ".join(words[one] for one in picked)


def _tokenizer(folder: Path) -> None:
    vocabulary = {word: at for at, word in enumerate(("<pad>", "<s>", "</s>", "<unk>", *_words()))}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tf.PreTrainedTokenizerFast(
        tokenizer_object=made, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


def feeds(model: Model, count: int, seed: int) -> Iterator[dict[str, Any]]:
    """Samples: all that the parts of a model may read."""
    random = np.random.default_rng(100 + seed)
    text = prose(count * LENGTH, seed).split()
    ids = {word: at + 4 for at, word in enumerate(_words())}
    for index in range(count):
        feed: dict[str, Any] = {}
        if model.kind != "vision" and ("tokens" in model.reads or model.parts):
            rows = [ids[word] for word in text[index * LENGTH : (index + 1) * LENGTH]]
            rows[0], rows[-1] = 1, 2
            feed["input_ids"] = np.asarray([rows])
            feed["attention_mask"] = np.ones_like(feed["input_ids"])
        if "picture" in model.reads:
            feed["pixel_values"] = _picture(random, model.size)
        if "sound" in model.reads:
            feed["input_values"] = _sound(random, int(random.integers(6000, 9000)))
        if "mel" in model.reads:
            feed["input_features"] = _mel(random)
        if "points" in model.reads:
            feed = {"pixel_values": feed["pixel_values"], "input_labels": np.ones((1, 1, 2), np.int64)}
            feed["input_points"] = random.uniform(4, 60, (1, 1, 2, 2)).astype(np.float32)
        yield feed


def _picture(random: Any, size: int) -> Any:
    """A smooth ground, some rectangles on it, a little noise."""
    y, x = np.mgrid[0:size, 0:size] / size
    made = np.stack([np.sin(random.uniform(1, 6) * x + random.uniform(1, 6) * y + one) for one in range(3)])
    for _ in range(4):
        top, left = random.integers(0, size - 8, 2)
        height, width = random.integers(6, size // 2, 2)
        made[:, top : top + height, left : left + width] = random.uniform(-2, 2, (3, 1, 1))
    return (made + random.normal(0, 0.1, made.shape))[None].astype(np.float32)


def _sound(random: Any, length: int) -> Any:
    time = np.arange(length) / 16000
    tone = sum(np.sin(2 * np.pi * random.uniform(100, 250) * k * time) / k for k in range(1, 8))
    made = tone * (random.random(length // 400 + 1) > 0.35).repeat(400)[:length] + random.normal(0, 0.01, length)
    return ((made - made.mean()) / made.std())[None].astype(np.float32)


def _mel(random: Any) -> Any:
    steps = np.cumsum(random.normal(0, 0.15, (1, 40, 200)), axis=2)
    return (np.tanh(steps) + random.normal(0, 0.1, (1, 40, 200))).astype(np.float32)
