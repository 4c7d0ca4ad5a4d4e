"""Connections, addresses, bodies and answers."""
