"""The life of a run's folder."""
