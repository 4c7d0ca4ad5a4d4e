"""Trains a memory for your own notes: told once, asked for later, when the context is gone.

    python examples/train_notes.py NOTES_FOLDER --model MODEL --adapter OUT [--iters 200]

NOTES_FOLDER holds text files (.txt, .md), a note each; the file's name is what the note is about.
The conversations made of them tell several notes, then ask for one. The adapter learns to keep what
is told, so it is of use for notes that it has never seen as well; some are held out to show that.
"""

import argparse
import random
from pathlib import Path

import deltamem_mlx as dm
from deltamem_mlx.text.rows import ConversationRow
from deltamem_mlx.training.dataset import EpisodeDataset
from deltamem_mlx.training.episodes import EpisodeSettings
from deltamem_mlx.training.report import Info, Listener
from deltamem_mlx.training.settings import TrainSettings
from deltamem_mlx.training.start import fresh_adapter
from deltamem_mlx.training.trainer import Trainer

LONGEST = 400  # characters of a note that are told and asked for

Note = tuple[str, str]


def read_notes(folder: Path) -> list[Note]:
    """What each note is about, and its text."""
    files = sorted(path for path in folder.iterdir() if path.suffix in (".txt", ".md"))
    texts = [" ".join(path.read_text(encoding="utf-8").split())[:LONGEST] for path in files]
    return [
        (path.stem.replace("_", " "), text) for path, text in zip(files, texts, strict=True) if text
    ]


def told(notes: list[Note]) -> list[dict[str, str]]:
    """The turns in which notes are told."""
    turns = []
    for subject, text in notes:
        turns.append({"role": "user", "content": f"A note about {subject}: {text}"})
        turns.append({"role": "assistant", "content": "Noted."})
    return turns


def asked(subject: str) -> dict[str, str]:
    return {"role": "user", "content": f"What did I note about {subject}?"}


def conversations(notes: list[Note], count: int, most: int, seed: int) -> list[ConversationRow]:
    """Conversations of up to ``most`` notes each, one of them asked for."""
    rng = random.Random(seed)
    made = []
    for _ in range(count):
        some = rng.sample(notes, rng.randint(1, min(most, len(notes))))
        subject, text = rng.choice(some)
        answer = {"role": "assistant", "content": text}
        made.append(ConversationRow([*told(some), asked(subject), answer]))
    return made


class Lines(Listener):
    def on_train_loss_report(self, train_info: Info) -> None:
        print(f"{train_info['iteration']:>5}  loss {train_info['train_loss']:.3f}")

    def on_val_loss_report(self, val_info: Info) -> None:
        print(
            f"{val_info['iteration']:>5}  held-out notes {val_info['val_loss']:.3f}, "
            f"with another conversation's memory {val_info['val_loss_foreign']:.3f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("notes", type=Path)
    parser.add_argument("--model", required=True)
    parser.add_argument("--adapter", type=Path, default=Path("adapters"))
    parser.add_argument("--iters", type=int, default=200)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    args = parser.parse_args()

    notes = read_notes(args.notes)
    if len(notes) < 8:
        parser.error(f"{args.notes} has {len(notes)} notes; at least 8 are needed.")
    random.Random(0).shuffle(notes)
    held_out, seen = notes[: len(notes) // 8], notes[len(notes) // 8 :]

    model, tokenizer = dm.load(args.model)
    config = dm.DeltaMemConfig(delta_heads=("q", "o"))
    fresh_adapter(model, config, seed=0, base_model=args.model)
    settings = EpisodeSettings()
    train = EpisodeDataset(conversations(seen, 500, 4, seed=0), tokenizer, settings)
    valid = EpisodeDataset(conversations(held_out, 20, 4, seed=1), tokenizer, settings)
    run = TrainSettings(
        iters=args.iters,
        batch_size=args.batch_size,
        learning_rate=args.learning_rate,
        steps_per_eval=50,
    )
    Trainer(model, train, valid, run, args.adapter, listeners=[Lines()], resume=True).run()

    session = dm.MemorySession(model, tokenizer)
    session.remember(told(held_out[:2]))
    session.forget_context()
    subject, text = held_out[0]
    print(f"\nTold:     {text}\nAnswered: {session.ask(asked(subject)['content'])}")


if __name__ == "__main__":
    main()
