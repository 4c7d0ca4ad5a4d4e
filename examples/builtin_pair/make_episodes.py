"""Write the questions that measure the built-in pair, and the story that its demonstration tells.

    python examples/builtin_pair/make_episodes.py

``episodes.jsonl.gz`` is what ``deltamem-mlx eval recall`` and ``demo`` ask: subject-value pairs
that training never shows. ``story.json`` has two conversations about the same people.
"""

import argparse
import json
from pathlib import Path

from deltamem_mlx.builtin.language import PEOPLE, RELATIONS, LittleFact, LittleTalk, evaluation
from deltamem_mlx.evals.recall.episodes import RecallEpisode, write_episodes

BUILTIN = Path(__file__).parents[2] / "deltamem_mlx" / "builtin"
FIELDS = RecallEpisode.__dataclass_fields__


def story(seed: int) -> dict[str, object]:
    """A conversation about four people, one fact changed later, and one that tells other values."""
    make = LittleTalk(seed, test=True)
    relations = [relation for relation in RELATIONS if relation.subjects is PEOPLE]
    names = make.rng.sample(PEOPLE.pick(heldout=False), len(relations))
    told = [LittleFact(r, s, make.value(r, s)) for r, s in zip(relations, names, strict=True)]
    tell, now = make.history(told, updates=1)
    others = [
        LittleFact(f.relation, f.subject, make.value(f.relation, f.subject, f.value)) for f in now
    ]
    other, _ = make.history(make.rng.sample(others, len(others)))
    questions = [{"question": f.ask(make.rng), "answer": f.value} for f in now]
    return {"tell": tell, "other": other, "questions": questions}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=BUILTIN)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--each", type=int, default=256, help="episodes of each kind and size")
    parser.add_argument("--story-seed", type=int, default=7)
    args = parser.parse_args()
    rows = evaluation(args.seed, args.each)
    episodes = ({name: row[name] for name in FIELDS if name in row} for row in rows)
    write_episodes(
        args.out / "episodes.jsonl.gz", (RecallEpisode(**episode) for episode in episodes)
    )
    (args.out / "story.json").write_text(json.dumps(story(args.story_seed), indent=1) + "\n")


if __name__ == "__main__":
    main()
