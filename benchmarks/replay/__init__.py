"""Small models compiled in every precision at two commits, and what came out compared byte by byte."""
