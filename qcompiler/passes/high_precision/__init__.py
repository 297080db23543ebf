"""The type of everything that is not quantized."""
