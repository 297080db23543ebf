"""Models and graphs: reading, editing, writing, and what is known of operators."""
