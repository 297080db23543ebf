"""Quantized parts in the target's terms: converted or mended where that is exact, opened, released or refused."""
