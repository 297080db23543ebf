"""Typing: what is not quantized becomes FP16, BF16 or FP32, with casts where types meet."""
