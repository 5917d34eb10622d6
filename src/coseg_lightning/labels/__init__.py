"""Label layers: masks on disk that take the place of a dataset's own."""
