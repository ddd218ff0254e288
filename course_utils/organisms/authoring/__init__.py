"""How the suspects are made: training, measuring, comparing. Lessons never import this."""
