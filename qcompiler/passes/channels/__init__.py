"""Passes that scale, move or take apart channels: SmoothQuant, equalization, LLM.int8."""
