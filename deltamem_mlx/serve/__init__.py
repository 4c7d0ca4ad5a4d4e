"""An OpenAI-compatible server on mlx-lm's, whose named memories outlive a connection.

From the request down: `handler` (routes, mlx-lm's answers; `wire`: bytes), `bodies` (what a request
may say), `memories` (which there are, in RAM; `folder`: their files), `turn` (what one message adds
to one), `prompts` (requests without one), `generator` (the thread that owns the model), `batch`
(what runs in it), `server` (all of it behind an address).
"""
