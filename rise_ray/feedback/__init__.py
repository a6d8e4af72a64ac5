"""What is said between turns, and who answers better: teachers."""
