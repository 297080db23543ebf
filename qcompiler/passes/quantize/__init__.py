"""Q/DQ pairs where the plan wants them, and weights in few bits."""
