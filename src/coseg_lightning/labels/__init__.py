"""Label layers: masks on disk that replace a dataset's own masks, which stay unchanged."""
