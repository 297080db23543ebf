"""Where items of work are done: processes of this machine, or a Ray cluster. Results do not depend on it."""
