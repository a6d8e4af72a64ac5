"""Checking answers: child processes that may be killed, and the actor that owns them."""
