"""How fast and how large: every preset and backend against a plain re-creation of the published computation."""
