"""Who is who, and by when: rosters, names as platforms write them, late work."""
