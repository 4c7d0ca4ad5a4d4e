"""The page that a browser gets: a chat with a memory, by the public routes alone.

What is in ``web/`` is sent as it is: there is no build step, and no file of another host.
"""
