"""Stored trajectories to weighted rows of tokens: pure rules, and the job that applies them."""
