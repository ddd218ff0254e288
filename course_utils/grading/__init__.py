"""Grading knows notebooks, not models: a reference, a submission, what came of running one against the other."""
