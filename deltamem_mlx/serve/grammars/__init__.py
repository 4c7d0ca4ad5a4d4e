"""Answers that fit a JSON Schema or call a tool: what may be said next, token by token."""
