"""Episodes: the engine that samples, the worker that hosts it, the pool that leases them out."""
