"""How each kind of model is called, traced and checked, and which files it becomes."""
