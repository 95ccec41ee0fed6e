"""Networks: the grounder and its parts."""
