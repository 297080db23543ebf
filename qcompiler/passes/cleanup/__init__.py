"""Float passes that keep the meaning: everything named, constants folded, norms and shifts in their layers."""
