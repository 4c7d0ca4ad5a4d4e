"""A conversation, turn by turn, and on disk."""
