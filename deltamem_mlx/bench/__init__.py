"""The plain and the patched model beside each other: speed, memory, graph; and the scan alone."""

from .drafting import prompts_for
from .models import STRATEGIES, Pair, with_plain_twin, with_random_adapters
from .primitives import count_primitives
from .run import (
    CALLS,
    DRAFT,
    FULL,
    PARTS,
    PROFILE,
    QUICK,
    TRAIN,
    BenchPlan,
    BenchReport,
    run_bench,
)
from .shapes import SHAPES, random_model, shape_config
from .timing import Effort

__all__ = [
    "CALLS",
    "DRAFT",
    "FULL",
    "PARTS",
    "PROFILE",
    "QUICK",
    "SHAPES",
    "STRATEGIES",
    "TRAIN",
    "BenchPlan",
    "BenchReport",
    "Effort",
    "Pair",
    "count_primitives",
    "prompts_for",
    "random_model",
    "run_bench",
    "shape_config",
    "with_plain_twin",
    "with_random_adapters",
]
