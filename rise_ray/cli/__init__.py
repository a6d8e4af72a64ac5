"""What a user types: commands, checks before a run, what they print."""
