"""A class: submissions in, a gradebook, marks, feedback and exports out."""
