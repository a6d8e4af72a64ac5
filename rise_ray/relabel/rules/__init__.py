"""Rules: each turns one trajectory into weighted rows. None knows a phase, a track or a recipe."""
