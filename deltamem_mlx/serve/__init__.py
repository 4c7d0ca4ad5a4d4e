"""An OpenAI-compatible server on mlx-lm's, whose named memories outlive a connection.

From the request down: `handler` (routes), `responses` and `messages` (those APIs), `http`
(connections, addresses, bytes), `serving` (all that answers), `batching` (the thread that owns the
model, and what runs in it), `turns` (what a request adds to a memory, as steps), `memories` (which
there are, in RAM and on disk), `kept` (responses and conversations that are asked for again),
`requests` (what a body asks, as values). `provider` has the model; `server` puts a `serving` behind
an address.
"""
