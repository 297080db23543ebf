"""SmoothQuant: which alpha each group of layers gets, judged by what its layers and the model compute."""
