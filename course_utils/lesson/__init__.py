"""What the lessons show with: widgets, and the table of evidence that grows from one to the next."""
