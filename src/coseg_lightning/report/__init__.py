"""report.html, its figures, and the tables of a sweep."""
