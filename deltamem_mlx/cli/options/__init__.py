"""The options of commands, each said once."""
