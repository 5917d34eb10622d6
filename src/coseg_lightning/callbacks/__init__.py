"""Lightning callbacks of the stages: ranking, label correction, weight averages, checkpoints."""
