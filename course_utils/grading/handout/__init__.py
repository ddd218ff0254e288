"""What students are given: exercises made from solutions, in bundles."""
