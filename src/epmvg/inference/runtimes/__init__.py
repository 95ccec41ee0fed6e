"""What computes a grounder's answers: torch, or the two graphs of an exported folder."""
