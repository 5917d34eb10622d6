"""The paper's mathematics in plain torch: no Lightning, no files."""
