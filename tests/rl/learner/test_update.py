"""The updates on real rollouts of the engine: exact at lag 0, off-policy after, and refusing a path that was not walked."""
