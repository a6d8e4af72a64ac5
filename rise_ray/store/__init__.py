"""What a run writes: trajectories and examples on Parquet, its journal, its checkpoints."""
