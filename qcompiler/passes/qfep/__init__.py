"""A prefix baked into the graph: keys and values of tokens that stand before every text."""
