"""The course: from a chat model to an adapter that remembers, without any data."""
