"""Helpers of the course on two-stage retrieval."""
