"""Masks of a run as tasks of annotation tools, and what was drawn there: one file a tool."""
