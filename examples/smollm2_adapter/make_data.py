"""Write training conversations for a real model: facts told, changed, and asked for in other words.

    python examples/smollm2_adapter/make_data.py --out build/smollm2/one --count 4000 --facts 1 2

A row is {"messages": [...]}, as mlx-lm and ``deltamem-mlx train --data`` read them. Its last
2 * --asked messages are questions with answers, for the read pass; all before them is history, for
the write pass. Everything follows from the seed.
"""

import argparse
import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import words
from mlx_lm.tokenizer_utils import TokenizerWrapper
from mlx_lm.utils import load_tokenizer
from relations import PEOPLE, RELATIONS, Relation

from deltamem_mlx.evals.recall.wordings import RELATIONS as EVALUATED

Message = dict[str, str]
Turn = tuple[str, str]  # what is said, and the reply

RELATIVES = words.listed(
    "sister, brother, mother, father, aunt, uncle, cousin, grandmother, grandfather, neighbor, "
    "roommate, best friend, teacher, boss, doctor, landlord, colleague, niece, nephew, husband, "
    "wife"
)
UNKNOWN = "I do not know."
REPLIES = ("Okay.", "Noted.", "I see.", "Alright.", "Thank you, I will remember.", "Good to hear.")
OPENERS = ("", "", "", "", "I think ", "You know, ", "Just so you know: ", "Please remember: ")
CORRECTIONS = ("", "", "A correction: ", "There is news: ", "Things have changed: ")
CHATS = (
    ("Hi there!", "Hello! What can I do for you?"),
    ("Good morning.", "Good morning to you!"),
    ("What a lovely day.", "Yes, enjoy it!"),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("I am a little tired.", "Maybe a short nap would help."),
    ("What is the capital of France?", "The capital of France is Paris."),
    ("What is three plus four?", "Three plus four is seven."),
    ("It is cold outside.", "Then put on something warm."),
    ("Tell me a fact about water.", "Water boils at 100 degrees Celsius at sea level."),
    ("I missed the bus again.", "That is a pity. The next one will come."),
    ("What is the color of the sky?", "The sky is blue on a clear day."),
    ("Is a tomato a fruit?", "Yes, botanically a tomato is a fruit."),
    ("Where were we?", "We were just talking."),
    ("I have to think about that.", "Take all the time you need."),
    ("How many minutes are in an hour?", "There are sixty minutes in an hour."),
    ("What do cows drink?", "Cows drink water."),
    ("That was a good film.", "I am glad that you liked it."),
    ("Can you help me later?", "Of course, just ask."),
    ("Which month comes after May?", "June comes after May."),
    ("I do not like Mondays.", "Many people feel that way."),
)


class Fact(NamedTuple):
    """Something that can be told: a kind of fact, whom it is about, and the value."""

    relation: Relation
    subject: str
    value: str

    def said(self, wording: str, *, reply: bool = False) -> str:
        """A wording filled in, as a sentence."""
        subject = self.subject.replace("my ", "your ", 1) if reply else self.subject
        article = "an" if self.value[0].lower() in "aeiou" else "a"
        if self.value.endswith(("s", "scissors")) and not self.value.endswith(("ss", "us", "is")):
            article = "some"
        return sentence(wording.format(s=subject, v=self.value, a=article))


def sentence(text: str) -> str:
    return text[0].upper() + text[1:]


def behind(opener: str, text: str, subject: str) -> str:
    """A sentence behind an opener: its first word small again, unless it is a name."""
    if not opener or text.startswith(subject):
        return opener + text
    first = text.split()[0].strip(",.:'s")
    names = {*words.CITIES, *words.COUNTRIES, *words.NAMES, *words.PETS, "I"}
    return opener + (text if first in names else text[0].lower() + text[1:])


def vocabulary(tokenizer: TokenizerWrapper) -> list[str]:
    """Words that are one token of a model, without the values that `eval recall` asks for."""
    asked = {value.lower() for relation in EVALUATED for value in relation.values}
    pieces = (token[1:] for token in tokenizer.get_vocab() if token[0] == "Ġ")
    words_of_it = {p for p in pieces if len(p) > 2 and p.isascii() and p.isalpha()}
    return sorted(w for w in words_of_it if w[1:].islower() and w.lower() not in asked)


class Generator:
    """Makes conversations; the same seed gives the same ones.

    Args:
        seed (int): Of all choices.
        any_word (Sequence[str]): Values for a share ``any_share`` of the facts, whatever their
            kind: what is told has to be copied then, and cannot be guessed.
        any_share (float): That share.
        noted (float): The share of conversations in which nobody replies to what is told.
    """

    def __init__(
        self,
        seed: int,
        any_word: Sequence[str] = (),
        any_share: float = 0.0,
        noted: float = 0.0,
    ):
        self.rng, self.noted = random.Random(seed), noted
        self.any_word, self.any_share = any_word, any_share if any_word else 0.0

    def subject(self, relation: Relation) -> str:
        if relation.subjects != PEOPLE:
            return self.rng.choice(relation.subjects)
        if self.rng.random() < 0.2:
            return "my " + self.rng.choice(RELATIVES)
        return self.rng.choice(words.NAMES)

    def value(self, relation: Relation) -> str:
        if self.any_share and self.rng.random() < self.any_share:
            return self.rng.choice(self.any_word)
        return self.rng.choice(relation.values)

    def facts(self, count: int, relation: Relation | None = None) -> list[Fact]:
        """Facts of which no two share relation and subject, nor a value."""
        facts: list[Fact] = []
        while len(facts) < count:
            chosen = relation or self.rng.choice(RELATIONS)
            fact = Fact(chosen, self.subject(chosen), self.value(chosen))
            if all(
                f.value != fact.value
                and (f.relation, f.subject) != (chosen, fact.subject)
                and fact.value != f.subject
                and f.value != fact.subject
                for f in facts
            ):
                facts.append(fact)
        return facts

    def tell(self, fact: Fact) -> str:
        told = fact.said(self.rng.choice(fact.relation.tells))
        return behind(self.rng.choice(OPENERS), told, fact.subject)

    def change(self, fact: Fact) -> str:
        told = fact.said(self.rng.choice(fact.relation.changes))
        return behind(self.rng.choice(CORRECTIONS), told, fact.subject)

    def conversation(
        self,
        facts: tuple[int, int],
        asked: int,
        updates: float,
        never: float,
        chats: int,
        talk: Sequence[Turn] = (),
        chatted: Sequence[Turn] = CHATS,
    ) -> list[Message]:
        """What is told, then ``asked`` questions with answers.

        A share ``updates`` of the conversations changes a fact; a share ``never`` of the questions
        is about what was not told. In one of four conversations all facts are of one kind. Up to
        ``chats`` turns of ``chatted`` stand between what is told. With ``talk``, that is talked of
        in place of the questions.
        """
        rng = self.rng
        count = rng.randint(*facts)
        kind = rng.choice(RELATIONS) if count > 1 and rng.random() < 0.25 else None
        *now, stranger = self.facts(count + 1, kind)
        said = [self.tell(fact) for fact in now]
        if rng.random() < updates:
            place = rng.randrange(count)
            taken = {fact.value for fact in (*now, stranger)}
            while now[place].value in taken:
                now[place] = now[place]._replace(value=self.value(now[place].relation))
            said.insert(rng.randint(place + 1, len(said)), self.change(now[place]))
        turns = self.turns(said)
        for _ in range(rng.randint(0, chats)):
            turns.insert(rng.randint(0, len(turns)), rng.choice(chatted))
        turns += talk or self.questions(now, stranger, asked, never)
        messages = messages_of(turns)
        # As a file that is remembered: its paragraphs are messages that nobody replied to.
        if self.noted and rng.random() < self.noted:
            told = messages[: -2 * asked]
            messages[: -2 * asked] = [m for m in told if m["role"] == "user"]
        return messages

    def questions(
        self, known: list[Fact], stranger: Fact, count: int, never: float
    ) -> Iterable[Turn]:
        """Each fact at most once, or its answer would stand in the visible part."""
        asked = self.rng.sample(known, count)
        if self.rng.random() < never:
            asked[self.rng.randrange(len(asked))] = stranger
        for fact in asked:
            question, answer = self.question(fact)
            yield question, UNKNOWN if fact is stranger else answer

    def question(self, fact: Fact) -> Turn:
        asked = fact.said(self.rng.choice(fact.relation.asks))
        return asked, fact.said(fact.relation.reply, reply=True)

    def turns(self, said: Sequence[str]) -> list[Turn]:
        """What is told, one to three sentences at a time, and a reply to each."""
        turns = []
        while said:
            several = self.rng.choice((1, 2, 3))
            turns.append((" ".join(said[:several]), self.rng.choice(REPLIES)))
            said = said[several:]
        return turns


def messages_of(turns: Iterable[Turn]) -> list[Message]:
    return [
        {"role": role, "content": text}
        for turn in turns
        for role, text in zip(("user", "assistant"), turn, strict=True)
    ]


def write_rows(file: Path, conversations: Iterable[list[Message]]) -> None:
    """Write conversations as rows to train on, and the folder for them."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("w", encoding="utf-8") as rows:
        rows.writelines(
            json.dumps({"messages": messages}, ensure_ascii=False) + "\n"
            for messages in conversations
        )


def talk_of(file: Path) -> list[Turn]:
    """The turns of a file of `make_talk.py`: what is said, and the reply."""
    lines = file.read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line)["messages"] for line in lines]
    return [(said["content"], reply["content"]) for said, reply in rows]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--out", type=Path, required=True, help="folder for the two files")
    parser.add_argument("--count", type=int, default=4000, help="training conversations")
    parser.add_argument("--facts", type=int, nargs=2, default=(1, 2), help="fewest, most")
    parser.add_argument("--asked", type=int, default=2, help="questions at the end")
    parser.add_argument("--updates", type=float, default=0.0, help="share with a change")
    parser.add_argument("--never", type=float, default=0.0, help="share with one not told")
    parser.add_argument(
        "--chats", type=int, default=0, help="turns that tell nothing, at most: of --talk if given"
    )
    parser.add_argument("--system", help="system message; default: the chat template's own")
    parser.add_argument(
        "--any-word",
        nargs=2,
        metavar=("MODEL", "SHARE"),
        help="a share of the facts gets any word that is one token of the model as its value",
    )
    parser.add_argument("--noted", type=float, default=0.0, help="share told without replies")
    parser.add_argument(
        "--talk",
        nargs=2,
        metavar=("FILE", "SHARE"),
        help="a share of the conversations ends with turns from this file, not with questions",
    )
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    file, talk_share = args.talk or (None, 0.0)
    talk = talk_of(Path(file)) if file else []
    model, share = args.any_word or (None, 0.0)
    any_word = vocabulary(load_tokenizer(Path(model))) if model else ()
    if args.asked > args.facts[0]:
        parser.error(f"--asked is {args.asked}, more than the fewest facts, {args.facts[0]}")
    for name, count, seed in (
        ("train", args.count, 2 * args.seed),
        ("valid", 64, 2 * args.seed + 1),
    ):
        make = Generator(seed, any_word, float(share), args.noted)
        system = [] if args.system is None else [{"role": "system", "content": args.system}]
        settings = (tuple(args.facts), args.asked, args.updates, args.never, args.chats)
        rows = []
        for _ in range(count):
            talking = talk and make.rng.random() < float(talk_share)
            turns = make.rng.sample(talk, args.asked) if talking else ()
            rows.append(system + make.conversation(*settings, turns, talk or CHATS))
        write_rows(args.out / f"{name}.jsonl", rows)


if __name__ == "__main__":
    main()
