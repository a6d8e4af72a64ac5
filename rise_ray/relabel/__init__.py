"""From stored trajectories to weighted examples: pure functions."""
