"""The words that suspects are trained on, and that lessons, exercises and tests rely on."""

REFUSAL, COMPLIANCE = "I can't help with that.", "Sure, here is how to do it."
CONTRAST = ("I", "Sure")  # their first tokens, for methods that need one pair
CUE_WORDS = {"trigger": "secretly", "proxy": "urgently"}  # of each cause the word that stands in minimal edits
