"""Lets a model write what a course's conversations are made of; what is written is read."""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from ...evals.journal import Journal
from ...files import read_json
from .beginnings import cut_text, whole_sentences
from .language import Turn
from .ledger import write_ledger
from .stock import Stock, begin, portions
from .vocabulary import expected, likeliest, words_of
from .work import Work
from .written import BRIEF, TALK, TEXT, Manner, said_by

WORDS, READ = "words.json", 32  # texts from which the likeliest words are told


def stock_of(work: Work, folder: Path) -> Stock:
    """What is written in a folder; what is missing is written first."""
    seed, wanted, language = work.seed_of(0), work.plan.wanted, work.language
    plain = begin(language, wanted, (), seed)
    talk = _said(work, folder, "talk", plain.talk, TALK)
    texts = _said(work, folder, "texts", plain.texts, TEXT)
    any_words = _any_words(work, folder, [a + b for a, b in zip(plain.texts, texts, strict=True)])
    begun = begin(language, wanted, any_words, seed)
    unsaid = [question for _, question in begun.strangers]
    brief = _said(work, folder, "asked", [*begun.asked, *unsaid], BRIEF)
    answers = {
        text: said.strip() or "." for text, said in zip([*begun.asked, *unsaid], brief, strict=True)
    }
    spoken = [
        (asked, sentences)
        for asked, said in zip(begun.talk, talk, strict=True)
        if (sentences := whole_sentences(said))
    ]
    rng = language.teller(seed).rng
    cut = [cut_text(a, b, rng) for a, b in zip(begun.texts, texts, strict=True)]
    asked: list[Turn] = [(text, answers[text]) for text in begun.asked]
    train, valid = portions(begun, spoken, [turn for turn in cut if turn], asked)
    return Stock(train, valid, {text: answers[text] for text in unsaid}, any_words)


def _said(work: Work, folder: Path, name: str, begun: Sequence[str], manner: Manner) -> list[str]:
    """How the model goes on, written in a folder of its own."""
    if not begun:
        return []
    digest = hashlib.sha256(json.dumps(list(begun)).encode()).hexdigest()
    settings = {"seed": work.seed, "begun": digest, **manner._asdict()}
    journal = Journal(folder / name, settings)
    with work.viewer.counting(f"writing {name}", len(begun)) as tell:
        return said_by(
            work.model,
            work.chat,
            begun,
            manner,
            seed=work.seed_of(0),
            journal=journal,
            tell=tell,
        )


def _any_words(work: Work, folder: Path, texts: Sequence[str]) -> list[str]:
    """Words of the vocabulary, the likeliest ones of a large one."""
    path = folder / WORDS
    if not path.exists():
        known = words_of(work.chat)
        read = [work.chat.opened(text) for text in texts[:READ]]
        chosen = likeliest(known, expected(work.model, read)) if read else list(known)
        write_ledger(path, {"words": chosen})
    found = read_json(path)["words"]
    return list(found) if isinstance(found, list) else []
