"""Which node gets which precision, and why."""
