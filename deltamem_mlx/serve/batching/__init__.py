"""The thread that owns the model, and what runs in it."""
