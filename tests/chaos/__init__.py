"""Killing the parts of a real run at random moments, and checking what is left of it."""
