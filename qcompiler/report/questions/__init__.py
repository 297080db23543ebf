"""What `explain` and `diff` found in stored manifests, as text for the terminal."""
