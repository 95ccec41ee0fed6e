"""The teacher, how one is trained, and what a student is trained on."""
