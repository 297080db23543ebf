"""How the plan was found: the goal, the methods that were tried for it, and what could be had for what price."""
