"""Outliers: SmoothQuant, QFeM, FP8 and mixed precision on models that need them."""
