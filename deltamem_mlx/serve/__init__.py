"""An OpenAI-compatible server on mlx-lm's, whose named memories outlive a connection.

From the request down: `handler` (routes, mlx-lm's answers), `bodies` (what a request may say),
`memories` (which memories there are, in RAM and on disk), `turn` (what one message adds to one),
`generator` (the thread that owns the model), `server` (all of it behind an address).
"""
