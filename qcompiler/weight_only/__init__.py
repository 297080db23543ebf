"""Weights in few bits: which, in which form, and how they are rounded (nearest, MSE, AWQ, GPTQ)."""
