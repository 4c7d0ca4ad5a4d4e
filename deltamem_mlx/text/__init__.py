"""Conversations as text and ids; no model is needed here."""
