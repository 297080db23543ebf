"""The rewrites of a graph, one a file; `catalogue.py` lists them in the order in which a model meets them."""
