"""Pure arithmetic: rounding, blocks, dB."""
