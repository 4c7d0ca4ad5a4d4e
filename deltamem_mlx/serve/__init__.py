"""An OpenAI-compatible server on mlx-lm's, whose named memories outlive a connection.

From the request down: `listening` (connections), `wire` (bytes), `access` (who may ask), `handler`
and `management` (routes), `completions` (what a body asks, as values: `bodies`, `sampling`,
`fields`), `serving` (all that answers), `memories` (which there are, in RAM; `folder`: their
files), `history` (where a request goes on from), `turn` (what one message adds to a memory),
`prompts` (requests without one; `waypoints`: where cached ones can be cut), `generator` (the thread
that owns the model), `batch` (what runs in it; `drafted`: one answer after another). `server` puts
a `serving` behind an address.
"""
