"""Tiny models of torch and transformers with seeded random weights: each kind that `export` knows, two layers deep."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from qcompiler.frontends.export import ExportResult, export

VOCABULARY = 96
SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "bos_token_id": 1,
    "eos_token_id": None,
    "pad_token_id": 0,
}
WINDOW = 4  # of Gemma's sliding attention: shorter than the sequences of tests


def llama() -> Any:
    """Grouped queries, SwiGLU, RMSNorm, rotary positions."""
    config = transformers.LlamaConfig(**SIZES, num_key_value_heads=2)
    return _seeded(lambda: transformers.LlamaForCausalLM(config))


def gemma() -> Any:
    """Gemma 3: GeGLU, norms of queries and keys, tied embeddings, one layer with a sliding window and one without."""
    config = transformers.Gemma3TextConfig(
        **SIZES,
        num_key_value_heads=2,
        head_dim=16,
        sliding_window=WINDOW,
        layer_types=["sliding_attention", "full_attention"],
    )
    return _seeded(lambda: transformers.Gemma3ForCausalLM(config))


def mixtral() -> Any:
    """A mixture of four experts, of which two see each token."""
    config = transformers.MixtralConfig(**SIZES, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2)
    return _seeded(lambda: transformers.MixtralForCausalLM(config))


def bert() -> Any:
    """An encoder with a pooler, learned positions, GELU and LayerNorm behind each residual."""
    return _seeded(lambda: transformers.BertModel(transformers.BertConfig(**SIZES, max_position_embeddings=64)))


def t5() -> Any:
    """An encoder-decoder with relative positions and GeGLU."""
    config = transformers.T5Config(
        vocab_size=VOCABULARY,
        d_model=32,
        d_kv=8,
        d_ff=48,
        num_layers=2,
        num_heads=4,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
        pad_token_id=0,
        eos_token_id=None,
    )
    return _seeded(lambda: transformers.T5ForConditionalGeneration(config))


VISION: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 32,
    "patch_size": 16,
}


def clip() -> Any:
    """A tower of text and one of pictures, each with a projection, and embeddings of length 1."""
    text = transformers.CLIPTextConfig(**SIZES | {"eos_token_id": 2}, max_position_embeddings=32, projection_dim=24)
    vision = transformers.CLIPVisionConfig(**VISION, projection_dim=24)
    config = transformers.CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=24)
    return _seeded(lambda: transformers.CLIPModel(config))


def llava() -> Any:
    """A tower of pictures and a projector, whose results go between the tokens of a Llama."""
    config = transformers.LlavaConfig(
        text_config=transformers.LlamaConfig(**SIZES, num_key_value_heads=2),
        vision_config=transformers.CLIPVisionConfig(**VISION),
        image_token_index=VOCABULARY - 1,
        image_seq_length=4,
    )
    return _seeded(lambda: transformers.LlavaForConditionalGeneration(config))


def sam() -> Any:
    """An encoder of pictures with windows, and a decoder of masks."""
    sizes = {"hidden_size": 16, "image_size": 32, "patch_size": 8}
    vision = transformers.SamVisionConfig(
        **sizes | {"hidden_size": 32}, mlp_dim=48, num_hidden_layers=2, num_attention_heads=4, output_channels=16,
        window_size=2, global_attn_indexes=[1], num_pos_feats=8,
    )  # fmt: skip
    prompt = transformers.SamPromptEncoderConfig(**sizes, mask_input_channels=4)
    masks = transformers.SamMaskDecoderConfig(hidden_size=16, mlp_dim=32, num_attention_heads=4, iou_head_hidden_dim=16)
    config = transformers.SamConfig(
        vision_config=vision.to_dict(), prompt_encoder_config=prompt.to_dict(), mask_decoder_config=masks.to_dict()
    )
    return _seeded(lambda: transformers.SamModel(config))


def whisper() -> Any:
    """An encoder of spectrograms of one length, and a decoder of text."""
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    config = transformers.WhisperConfig(
        **sizes, vocab_size=VOCABULARY, encoder_attention_heads=4, decoder_attention_heads=4, num_mel_bins=8,
        max_source_positions=12, max_target_positions=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
        decoder_start_token_id=1,
    )  # fmt: skip
    return _seeded(lambda: transformers.WhisperForConditionalGeneration(config))


def trocr() -> Any:
    """A vision transformer, and a decoder of text that is a model of its own and measures its masks."""
    seen = transformers.ViTConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4, image_size=16, patch_size=8
    )
    said = transformers.TrOCRConfig(
        vocab_size=VOCABULARY, d_model=32, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=48,
        max_position_embeddings=32, cross_attention_hidden_size=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
    )  # fmt: skip
    config = transformers.VisionEncoderDecoderConfig.from_encoder_decoder_configs(seen, said)
    config.decoder_start_token_id, config.pad_token_id = 1, 0
    return _seeded(lambda: transformers.VisionEncoderDecoderModel(config=config))


def wav2vec2() -> Any:
    """Convolutions on a raw wave of any length that they can take, and a transformer."""
    config = transformers.Wav2Vec2Config(
        **SIZES, conv_dim=(16, 16), conv_stride=(4, 2), conv_kernel=(8, 3), num_feat_extract_layers=2,
        num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
    )  # fmt: skip
    return _seeded(lambda: transformers.Wav2Vec2ForCTC(config))


def detr() -> Any:
    """A detector: a ResNet, a transformer of queries, boxes and classes."""
    backbone = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    sizes = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48}
    config = transformers.DetrConfig(
        **sizes, encoder_attention_heads=4, decoder_attention_heads=4, use_timm_backbone=False, backbone=None,
        use_pretrained_backbone=False, backbone_config=backbone, num_queries=5,
    )  # fmt: skip
    return _seeded(lambda: transformers.DetrForObjectDetection(config))


MODELS: dict[str, Callable[[], Any]] = {
    one.__name__: one for one in (llama, gemma, mixtral, bert, t5, clip, llava, sam, whisper, trocr, wav2vec2, detr)
}


def _seeded(make: Callable[[], Any]) -> Any:
    """A model whose weights are large enough for tokens to differ, and no two of which are equal."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
        for name, weight in model.named_parameters():
            torch.nn.init.normal_(weight, std=0.2)
            if "norm" in name.lower() and weight.dim() == 1:
                weight.data += 1.0
    return model.eval()


class Exports:
    """Each model exported once a session, when a test first asks for it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: dict[tuple[str, bool], tuple[Any, ExportResult]] = {}

    def __call__(self, name: str, *, past: bool = True) -> tuple[Any, ExportResult]:
        """The torch model and its export, with a cache where it can have one and `past` is not False."""
        key = (name, past)
        if key not in self._made:
            model = MODELS[name]()
            path = self._folder / name / ("past" if past else "whole") / "model.onnx"
            self._made[key] = (model, export(model, path, past=None if past else False))
        return self._made[key]
