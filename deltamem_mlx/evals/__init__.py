"""Measuring an adapter: each task with and without the memory, on the same questions."""
