"""Anthropic's Messages, for clients that speak those."""
