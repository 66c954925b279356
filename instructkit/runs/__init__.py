"""A run and its processes: ranks, waits, cores, signs of life, log."""
