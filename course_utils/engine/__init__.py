"""Exact fast passes: shared prefixes, packing, interventions, metrics. Lessons build each once by hand."""
