"""Write conversations that end with something that has nothing to do with what came before.

    python examples/smollm2_adapter/make_unrelated.py MODEL build/smollm2/unrelated --count 1200

A row is {"messages": [...], "unrelated": true}: `deltamem-mlx train` learns to answer its last
messages, --asked of them, as the model does without a memory. In a share --beside of the rows half
of those are questions for facts that were told, and a row says which of its replies are unrelated.
Before them stands what a memory is told: facts, a chat of two people, running text, code, lists,
ordinary talk. Everything follows from the seed. What is asked in ``valid.jsonl`` is not asked in
``train.jsonl``, and neither has what `eval silence` asks or its chats say.
"""

import argparse
import ast
import json
import random
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from itertools import chain
from pathlib import Path

import chats
import mlx.core as mx
import mlx.nn as nn
import words
from make_data import CHATS, Generator, Message, Turn, messages_of, vocabulary
from make_passages import paragraphs
from make_passages import turn as passage
from make_talk import PROMPTS, filled, replies
from mlx_lm import load
from mlx_lm.tokenizer_utils import TokenizerWrapper
from prompts import EVERYDAY, WORDINGS

from deltamem_mlx.evals.silence.questions import QUESTIONS

BATCH = 24
REPLY = 20  # tokens of what the model says: more only costs time
HELD_OUT = 0.2  # of what is asked
UPDATES = 0.3  # share of the rows asked for facts in which one changes
TEXT = 1200  # characters of running text at most


class Library:
    """Text and code of Python's standard library; `pydoc_data` is left out."""

    def __init__(self, rng: random.Random, count: int = 120):
        root = Path(sysconfig.get_path("stdlib"))
        left_out = {"site-packages", "test", "pydoc_data"}
        files = sorted(p for p in root.rglob("*.py") if not left_out & {*p.parts})
        chosen = rng.sample(files, min(count, len(files)))
        self.texts = [text for file in chosen for text in paragraphs(file)]
        self.code = [text for file in chosen for text in _functions(file)]


def _functions(file: Path) -> Iterator[str]:
    """Functions of a module as they stand there."""
    try:
        source = file.read_text(encoding="utf-8")
        tree = ast.parse(source)
    except (SyntaxError, UnicodeDecodeError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            text = ast.get_source_segment(source, node) or ""
            if 200 < len(text) < TEXT:
                yield text


class Histories:
    """What may be told before a question that has nothing to do with it.

    Args:
        make (Generator): Of facts.
        library (Library): Texts.
        talk (Sequence[Turn]): Ordinary questions with their answers.
    """

    def __init__(self, make: Generator, library: Library, talk: Sequence[Turn]):
        self.make, self.rng, self.library, self.talk = make, make.rng, library, talk
        self.kinds: dict[Callable[[], list[Message]], float] = {
            self.facts: 0.35,
            self.two_people: 0.3,
            self.article: 0.1,
            self.program: 0.08,
            self.listing: 0.07,
            self.ordinary: 0.1,
        }

    def draw(self, *, facts: bool = True) -> list[Message]:
        kinds = {k: share for k, share in self.kinds.items() if facts or k != self.facts}
        return self.rng.choices([*kinds], [*kinds.values()])[0]()

    def facts(self) -> list[Message]:
        said = [self.make.tell(fact) for fact in self.make.facts(self.rng.randint(1, 4))]
        return self.told(said)

    def told(self, said: Sequence[str]) -> list[Message]:
        messages = messages_of(self.make.turns(said))
        if self.rng.random() < self.make.noted:
            return [m for m in messages if m["role"] == "user"]
        return messages

    def two_people(self) -> list[Message]:
        lines = self.rng.choice((6, 10, 16, 20, 32))
        return [{"role": "user", "content": chats.two_people(lines, self.rng)}]

    def article(self) -> list[Message]:
        text, wanted = "", self.rng.randint(200, TEXT)
        while len(text) < wanted:
            text += self.rng.choice(self.library.texts) + "\n\n"
        return [{"role": "user", "content": text[:wanted]}]

    def program(self) -> list[Message]:
        return [{"role": "user", "content": self.rng.choice(self.library.code)}]

    def listing(self) -> list[Message]:
        kinds = (words.THINGS, words.FOODS, words.TASKS, words.CITIES, words.JOBS, words.ANIMALS)
        count = self.rng.randint(4, 16)
        mark = self.rng.choice(("- ", "* ", "{}. "))
        listed = self.rng.sample(self.rng.choice(kinds), count)
        lines = [mark.format(i) + x for i, x in enumerate(listed, 1)]
        return [{"role": "user", "content": "\n".join(lines)}]

    def ordinary(self) -> list[Message]:
        own = [turn for turn in (*CHATS, *self.talk) if turn[0] not in _ASKED]
        return messages_of(self.rng.sample(own, self.rng.randint(1, 4)))


_ASKED = {text for texts in QUESTIONS.values() for text in texts}


def never_told(make: Generator, count: int) -> list[tuple[list[str], str]]:
    """What is told, and a question for a fact that is not."""
    found = []
    for _ in range(count):
        *now, stranger = make.facts(make.rng.randint(2, 5))
        found.append(([make.tell(fact) for fact in now], make.question(stranger)[0]))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="the model that answers: a folder or a Hub name")
    parser.add_argument("out", type=Path, help="folder for the two files")
    parser.add_argument("--count", type=int, default=1200, help="training conversations")
    parser.add_argument("--held-out", type=int, default=48, help="conversations for valid.jsonl")
    parser.add_argument("--asked", type=int, default=1, help="messages at the end to be answered")
    parser.add_argument("--joined", type=int, default=1, help="histories in a row, at most")
    parser.add_argument("--questions", type=int, default=300, help="different ones, about")
    parser.add_argument("--never", type=float, default=0.25, help="share: facts nobody told")
    parser.add_argument("--beside", type=float, default=0.0, help="share: facts asked for, too")
    parser.add_argument("--passages", type=float, default=0.2, help="share: a text to go on with")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    if args.beside and args.asked % 2:
        parser.error(f"--asked is {args.asked}: with --beside half of them have to be facts")

    model, tokenizer = load(args.model)
    mx.random.seed(args.seed)
    rng = random.Random(args.seed)
    any_word = vocabulary(tokenizer)
    makes = [Generator(2 * args.seed + part, any_word, 0.3, 0.3) for part in (0, 1)]
    wordings = [*WORDINGS, *PROMPTS]
    asked = [*EVERYDAY, *filled(wordings, rng, max(0, args.questions - len(EVERYDAY)))]
    rng.shuffle(asked)
    held = round(HELD_OUT * len(asked))
    stranger = [
        never_told(make, max(1, round(share * args.questions / 2)))
        for make, share in zip(makes, (1 - HELD_OUT, HELD_OUT), strict=True)
    ]
    everything = [*asked, *(question for part in stranger for _, question in part)]
    answers = dict(zip(everything, said(model, tokenizer, everything), strict=True))
    library = Library(rng)
    parts = (("train", args.count, asked[held:]), ("valid", args.held_out, asked[:held]))
    args.out.mkdir(parents=True, exist_ok=True)
    for (name, count, questions), make, unsaid in zip(parts, makes, stranger, strict=True):
        talk = [(text, answers[text]) for text in questions]
        never = [(facts, (text, answers[text])) for facts, text in unsaid]
        told = Histories(make, library, talk)
        with (args.out / f"{name}.jsonl").open("w", encoding="utf-8") as file:
            for _ in range(count):
                if make.rng.random() < args.beside:
                    row = beside(told, make.rng.sample(talk, args.asked // 2), args.joined)
                else:
                    row = unrelated(told, talk, never, args)
                file.write(json.dumps(row, ensure_ascii=False) + "\n")


def beside(told: Histories, talk: Sequence[Turn], joined: int) -> dict[str, object]:
    """A row with facts somewhere in its history; they and ``talk`` are asked for in any order."""
    rng, count = told.rng, len(talk)
    conversation = told.make.conversation((count, count + 3), count, UPDATES, 0.0, 0)
    parts = [conversation[: -2 * count]]
    for _ in range(rng.randint(0, joined - 1)):
        parts.insert(rng.randint(0, len(parts)), told.draw(facts=False))
    history = list(chain(*parts))
    asked = [
        conversation[i : i + 2] for i in range(len(conversation) - 2 * count, len(conversation), 2)
    ]
    end = [(messages_of([turn]), True) for turn in talk] + [(turn, False) for turn in asked]
    rng.shuffle(end)
    silent = [len(history) + 2 * i + 1 for i, (_, is_talk) in enumerate(end) if is_talk]
    return {"messages": [*history, *chain(*(turn for turn, _ in end))], "unrelated": silent}


def unrelated(
    told: Histories,
    talk: Sequence[Turn],
    unsaid: Sequence[tuple[list[str], Turn]],
    args: argparse.Namespace,
) -> dict[str, object]:
    """A row in which nothing that is asked has to do with its history."""
    rng, drawn = told.rng, told.rng.random()
    turns = rng.sample(talk, args.asked)
    place = rng.randrange(args.asked)
    if drawn < args.never:
        facts, turns[place] = rng.choice(unsaid)
        history = told.told(facts)
    else:
        histories = 1 if args.joined == 1 else rng.randint(1, args.joined)
        history = list(chain(*(told.draw() for _ in range(histories))))
    end = [messages_of([turn]) for turn in turns]
    if args.never <= drawn < args.never + args.passages:
        end[place] = passage(rng.choice(told.library.texts), rng)
    return {"messages": [*history, *chain(*end)], "unrelated": True}


def said(model: nn.Module, tokenizer: TokenizerWrapper, asked: Sequence[str]) -> list[str]:
    """The likeliest beginnings of the model's answers."""
    prompts = [
        tokenizer.apply_chat_template(
            [{"role": "user", "content": text}], add_generation_prompt=True
        )
        for text in asked
    ]
    found = replies(model, tokenizer, prompts, batch=BATCH, max_tokens=REPLY)
    return [text.strip() or "." for text in found]


if __name__ == "__main__":
    main()
