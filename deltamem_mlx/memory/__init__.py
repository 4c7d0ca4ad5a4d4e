"""What a user does to a memory: look, set, forget, save and load, measure."""
