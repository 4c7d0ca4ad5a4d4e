"""The memories of a server: which there are, who has one in hand, in RAM and on disk."""
