"""What knows nothing of models: files, progress, JSON, the machine, user code."""
