"""What runs inside a fresh process of one quantizer's environment: it needs numpy and that quantizer, nothing else."""
