"""Training: conversations into episodes, and episodes into an adapter."""
