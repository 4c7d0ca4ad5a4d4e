"""Write the built-in pair's data: conversations for each training stage, and evaluation episodes.

    python examples/builtin_pair/make_data.py --out build/pair

A stage folder has train.jsonl, valid.jsonl and test.jsonl with rows {"messages": [...]}, as mlx-lm
and ``deltamem-mlx train --data`` read them. The last messages of a row are questions with answers,
``Stage.asked`` of them, for the read pass; all before them is history. In evaluation.jsonl a row is
an episode: messages to "tell", "question", "answer", and what kind it is.
"""

import argparse
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from deltamem_mlx.builtin.language import LittleTalk, evaluation


@dataclass(frozen=True)
class Stage:
    """A stage of the adapter's curriculum: what its conversations hold, and how many there are."""

    name: str
    facts: tuple[int, int]
    distractors: int
    recalls: int
    asked: int
    rows: int


STAGES = (
    Stage("stage1", (1, 2), 0, 0, 3, 4000),
    Stage("stage2", (2, 4), 1, 0, 5, 3200),
    Stage("stage3", (1, 10), 6, 2, 6, 12800),
)


def write(path: Path, rows: Iterable[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def write_stage(folder: Path, stage: Stage, seed: int, updates: float, never: float) -> None:
    for i, (split, rows) in enumerate((("train", stage.rows), ("valid", 128), ("test", 128))):
        make = LittleTalk(seed * 100 + i, test=split == "test")
        talks = (
            make.conversation(
                stage.facts,
                stage.distractors,
                updates,
                never,
                stage.asked,
                recalls=stage.recalls,
            )
            for _ in range(rows)
        )
        write(folder / f"{split}.jsonl", ({"messages": talk} for talk in talks))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("build/pair"))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--updates", type=float, default=0.3, help="share of rows with changed facts"
    )
    parser.add_argument(
        "--never", type=float, default=0.2, help="share of facts asked but not told"
    )
    parser.add_argument(
        "--episodes", type=int, default=256, help="evaluation episodes of each kind"
    )
    args = parser.parse_args()
    for i, stage in enumerate(STAGES):
        write_stage(args.out / stage.name, stage, args.seed * 10 + i, args.updates, args.never)
    write(args.out / "evaluation.jsonl", evaluation(args.seed + 1000, args.episodes))


if __name__ == "__main__":
    main()
