"""What a turn may be generated with: arguments of mlx-lm's ``stream_generate``."""

from collections.abc import Callable
from typing import TypedDict

import mlx.core as mx


class Generation(TypedDict, total=False):
    """Arguments of ``mlx_lm.stream_generate`` that a session takes; mlx-lm has the meanings."""

    max_tokens: int
    sampler: Callable[[mx.array], mx.array]
    logits_processors: list[Callable[[mx.array, mx.array], mx.array]]
    prefill_step_size: int
    prompt_progress_callback: Callable[[int, int], None]
    kv_bits: int | None
    kv_group_size: int
    quantized_kv_start: int
    num_draft_tokens: int
