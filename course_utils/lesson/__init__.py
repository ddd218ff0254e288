"""What the lessons show with and ask for: widgets, lines to fill in, choices that are kept."""
