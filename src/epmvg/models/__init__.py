"""Networks: the student and its parts."""
