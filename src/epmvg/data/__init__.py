"""Rows, views and batches."""
