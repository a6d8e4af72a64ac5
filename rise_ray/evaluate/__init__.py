"""RISE's evaluation protocol: which episodes to roll, and metrics with intervals."""
