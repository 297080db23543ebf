"""What is chosen: formats, ranges, layers that are given back."""
