"""Language models by method: one table of perplexities, sizes and kernels."""
