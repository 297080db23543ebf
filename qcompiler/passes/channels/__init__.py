"""Channels of float tensors are scaled or taken apart, so that 8 bits hold them; the model computes the same."""
