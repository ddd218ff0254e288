"""Run a notebook in a kernel that is watched: what runs when, and what came of it."""
