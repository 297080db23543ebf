"""What a model is said to be fed with from now on: inputs that have one value, axes that have one size."""
