"""Models: where they come from, and how a small one is made from nothing."""
