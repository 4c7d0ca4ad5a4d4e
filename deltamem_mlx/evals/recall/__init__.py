"""How much is remembered: facts told, dropped from the context, and asked."""
