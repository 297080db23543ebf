"""QFeP: prefixes against spiking tokens, searched, run once and proven."""
