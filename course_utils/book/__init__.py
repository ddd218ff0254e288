"""The course as a static site: its notebooks as they are stored, its pages, and a reference from the docstrings."""
