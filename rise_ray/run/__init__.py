"""One run: its stages, what each phase rolls, its actors, its journal."""
