"""Where models run besides the CPU."""
