"""Every causal architecture of transformers, tiny, and whether each method of the package tells the truth about it."""
