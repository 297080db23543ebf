"""A prefix in front of every text, behind which activations do not spike."""
