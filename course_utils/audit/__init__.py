"""A model's case file: the grid of minimal edits, the verdict on it, and the report (lesson 8.6)."""
