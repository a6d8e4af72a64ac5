"""New weights into running engines: source, transfer backend, parity probe."""
