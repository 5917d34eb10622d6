"""The report of a run, its figures, and the tables of a sweep."""
