"""An OpenAI-compatible server on mlx-lm's, whose named memories outlive a connection.

From the request down: `listening` (connections), `wire` (bytes), `access` (who may ask), `handler`
and `management` (routes), `completions` (what a body asks, as values: `bodies`, `parameters`,
`fields`), `serving` (all that answers), `memories` (which there are, in RAM; `folder`: their
files), `turn` (what one message adds to one), `prompts` (requests without one), `generator` (the
thread that owns the model), `batch` (what runs in it). `server` puts a `serving` behind an address.
"""
