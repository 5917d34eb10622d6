"""Exchange of a run's masks with annotation tools, with one module per tool."""
