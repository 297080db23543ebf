"""What a compile takes as data and models grow, and what is left of one that was killed."""
