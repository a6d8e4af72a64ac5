"""The Ray cluster under a run: connection, stop, deadlines, what processes leave behind."""
