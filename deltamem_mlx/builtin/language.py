"""Conversations of the built-in pair's little language: facts told, changed and asked for.

"anna lives in oslo ." "ok ." ... "where does anna live ?" "anna lives in oslo ." One subject has
one fact in a conversation. Everything follows from a seed.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass

from .words import (
    ACKS,
    CHANGES,
    CHATS,
    OPENERS,
    PEOPLE,
    RELATIONS,
    UNKNOWN,
    LittleRelation,
    is_test_pair,
)

__all__ = ["PEOPLE", "RELATIONS", "LittleFact", "LittleTalk", "Message", "evaluation"]

Message = dict[str, str]


@dataclass
class LittleFact:
    relation: LittleRelation
    subject: str
    value: str

    def tell(self, rng: random.Random, heldout: bool = False, change: bool = False) -> str:
        tells = self.relation.tells
        words = tells[-1] if heldout else rng.choice(tells[:-1])
        opener = rng.choice(CHANGES if change else OPENERS)
        return f"{opener} {words.format(s=self.subject, v=self.value)} .".strip()

    def ask(self, rng: random.Random, heldout: bool = False) -> str:
        asks = self.relation.asks
        return (asks[-1] if heldout else rng.choice(asks[:-1])).format(s=self.subject)

    def answer(self, known: bool = True) -> str:
        if known:
            return self.relation.answer.format(s=self.subject, v=self.value)
        return (
            self.relation.answer.format(s=self.subject, v=UNKNOWN).removesuffix(" .")
            + " i do not know ."
        )


Turn = tuple[list[Message], LittleFact | None]  # a message and its reply; the fact it tells


def subject_pool(words: str) -> list[tuple[LittleRelation, str]]:
    """All (relation, subject) with ``words`` "train" or "heldout" subjects."""
    return [(r, s) for r in RELATIONS for s in r.subjects.pick(words == "heldout")]


class LittleTalk:
    """Makes conversations of one split.

    * ``seed`` (int): the same seed gives the same conversations.
    * ``test`` (bool): only the subject-value pairs kept from training, else only the others.
    * ``heldout_words`` (bool): only subjects and values that training never shows.
    * ``heldout_wordings`` (bool): facts and questions in wordings that training never shows.
    """

    def __init__(
        self,
        seed: int,
        test: bool = False,
        heldout_words: bool = False,
        heldout_wordings: bool = False,
    ):
        self.rng = random.Random(seed)
        self.test, self.heldout_words, self.heldout_wordings = test, heldout_words, heldout_wordings
        self.pool: dict[str, list[LittleRelation]] = {}
        for relation, subject in subject_pool("heldout" if heldout_words else "train"):
            self.pool.setdefault(subject, []).append(relation)
        self.subjects = list(self.pool)

    def value(self, relation: LittleRelation, subject: str, but: str = "") -> str:
        values = relation.values.pick(self.heldout_words)
        if not self.heldout_words:
            values = [v for v in values if is_test_pair(relation, subject, v) == self.test]
        return self.rng.choice([v for v in values if v != but] or values)

    def facts(self, n: int, relation: LittleRelation | None = None) -> list[LittleFact]:
        """``n`` facts about ``n`` different subjects, all of ``relation`` if one is given."""
        facts = []
        for subject in self.rng.sample(
            [s for s in self.subjects if relation in (None, *self.pool[s])], n
        ):
            chosen = relation or self.rng.choice(self.pool[subject])
            facts.append(LittleFact(chosen, subject, self.value(chosen, subject)))
        return facts

    def changed(self, fact: LittleFact) -> LittleFact:
        return LittleFact(
            fact.relation, fact.subject, self.value(fact.relation, fact.subject, fact.value)
        )

    def turn(self, text: str) -> list[Message]:
        return [user(text), assistant(self.rng.choice(ACKS))]

    def chat(self) -> list[Message]:
        said, reply = self.rng.choice(CHATS)
        return [user(said), assistant(reply)]

    def history(
        self,
        facts: list[LittleFact],
        updates: int = 0,
        distractors: int = 0,
        recalls: int = 0,
        at_end: bool = False,
    ) -> tuple[list[Message], list[LittleFact]]:
        """Turns that tell ``facts`` and change ``updates`` of them, chat and questions in between.

        Returns the messages and the facts as they are at the end. ``at_end``: all chat comes last.
        """
        rng, now = self.rng, list(facts)
        turns: list[Turn] = [(self.turn(f.tell(rng, self.heldout_wordings)), f) for f in facts]
        first = list(turns)
        for i in rng.sample(range(len(facts)), min(updates, len(facts))):
            now[i] = self.changed(facts[i])
            after = next(j for j, turn in enumerate(turns) if turn is first[i]) + 1
            change = self.turn(now[i].tell(rng, self.heldout_wordings, change=True))
            turns.insert(rng.randint(after, len(turns)), (change, now[i]))
        for _ in range(distractors):
            turns.insert(len(turns) if at_end else rng.randint(0, len(turns)), (self.chat(), None))
        for _ in range(recalls):
            self.insert_recall(turns)
        return [m for messages, _ in turns for m in messages], now

    def insert_recall(self, turns: list[Turn]) -> None:
        """Insert a question and its answer, as things stand there, somewhere in ``turns``."""
        place = self.rng.randint(1, len(turns))
        known = {f.subject: f for _, f in turns[:place] if f}
        stranger = not known or self.rng.random() < 0.25
        fact = self.facts(1)[0] if stranger else self.rng.choice(list(known.values()))
        fact = known.get(fact.subject, fact)
        answer = fact.answer(fact.subject in known)
        turns.insert(place, ([user(fact.ask(self.rng)), assistant(answer)], None))

    def questions(self, known: list[LittleFact], n: int, never: float) -> list[Message]:
        """``n`` questions with answers, a share ``never`` of them about subjects not told."""
        told = {f.subject for f in known}
        asked = [f for f in self.rng.sample(known, len(known)) if self.rng.random() >= never][:n]
        strangers = [f for f in self.facts(len(told) + n) if f.subject not in told]
        # A question asked twice would find its answer in the visible part: repeats only fill up.
        while len(asked) < n:
            asked.append(strangers.pop() if self.rng.random() < 0.5 else self.rng.choice(known))
        self.rng.shuffle(asked)
        out = []
        for fact in asked:
            question = fact.ask(self.rng, self.heldout_wordings)
            out += [user(question), assistant(fact.answer(fact.subject in told))]
        return out

    def conversation(
        self,
        facts: tuple[int, int],
        distractors: int,
        updates: float = 0.3,
        never: float = 0.25,
        asked: int = 6,
        alike: float = 0.0,
        recalls: int = 0,
    ) -> list[Message]:
        """A training conversation: turns that tell, then ``asked`` questions with answers.

        A share ``alike`` has facts of one relation only, where the latest value is no clue.
        """
        rng = self.rng
        known = self.facts(
            rng.randint(*facts), rng.choice(RELATIONS) if rng.random() < alike else None
        )
        changes = rng.randint(1, max(1, len(known) // 2)) if rng.random() < updates else 0
        recalls = rng.randint(0, recalls) if recalls else 0
        told, known = self.history(known, changes, rng.randint(0, distractors), recalls)
        return told + self.questions(known, asked, never)

    def episode(self, facts: int, kind: str = "told", distractors: int = 0) -> dict:
        """An evaluation episode: messages to ``tell``, one ``question``, its ``answer``."""
        before = self.facts(facts + 1)
        told, never = before[:facts], before[facts]
        tell, now = self.history(told, int(kind == "updated"), distractors, at_end=True)
        changed = [a for a, b in zip(now, told, strict=True) if a is not b]
        asked = never if kind == "never" else self.rng.choice(changed or now)
        old = next(
            (b.value for a, b in zip(now, told, strict=True) if a is asked and b is not a), None
        )
        return {
            "tell": tell,
            "question": asked.ask(self.rng, self.heldout_wordings),
            "answer": "i do not know" if kind == "never" else asked.value,
            "facts": facts,
            "kind": kind,
            "distractors": distractors,
            "reply": asked.answer(kind != "never"),
            "old": old,
        }


def user(text: str) -> Message:
    return {"role": "user", "content": text}


def assistant(text: str) -> Message:
    return {"role": "assistant", "content": text}


EVALUATIONS = (
    [{"facts": n} for n in (1, 2, 4, 8, 16)]
    + [{"facts": n, "distractors": d} for n in (1, 4) for d in (2, 8, 32)]
    + [{"facts": n, "kind": kind} for n in (1, 4, 8) for kind in ("updated", "never")]
)


def evaluation(seed: int, each: int) -> Iterator[dict]:
    """``each`` episodes of every cell; held-out words and wordings last, as kinds of their own."""
    for i, cell in enumerate(EVALUATIONS):
        make = LittleTalk(seed * 1000 + i, test=True)
        yield from (make.episode(**cell) for _ in range(each))
    for n in (1, 4):
        for kind in ("heldout_word", "heldout_wording"):
            make = LittleTalk(
                seed * 1000 + 500 + n,
                test=True,
                heldout_words=kind == "heldout_word",
                heldout_wordings=kind == "heldout_wording",
            )
            yield from ({**make.episode(n), "kind": kind} for _ in range(each))
