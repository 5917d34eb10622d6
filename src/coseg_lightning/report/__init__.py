"""report.html and the figures of a run."""
def write_report(folder, data): pass
