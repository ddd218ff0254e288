"""The suspects' second generation; the first goes with the last lesson that uses it."""
