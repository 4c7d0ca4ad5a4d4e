"""What a course trains on: nothing that `eval recall` or `eval silence` asks is in it."""

import ast
import random
from types import SimpleNamespace

import pytest
from mlx_lm.tokenizer_utils import load as load_tokenizer
from tiny import TOKENIZER

from deltamem_mlx.evals.recall.facts import fact_episodes
from deltamem_mlx.evals.recall.wordings import PEOPLE
from deltamem_mlx.evals.recall.wordings import RELATIONS as ASKED
from deltamem_mlx.evals.silence import talk
from deltamem_mlx.evals.silence.questions import QUESTIONS
from deltamem_mlx.text.rows import ConversationRow
from deltamem_mlx.training.course import chats, library, prompts, words
from deltamem_mlx.training.course.beginnings import LONGEST, PROMPT, REPLY, cut_text
from deltamem_mlx.training.course.english import CHATS, EnglishTeller
from deltamem_mlx.training.course.histories import EnglishHistories
from deltamem_mlx.training.course.in_english import English
from deltamem_mlx.training.course.language import TalkShape
from deltamem_mlx.training.course.little import Little
from deltamem_mlx.training.course.relations import RELATIONS
from deltamem_mlx.training.course.rendering import ChatForm
from deltamem_mlx.training.course.rows import stage_rows
from deltamem_mlx.training.course.stages import ENGLISH, LITTLE
from deltamem_mlx.training.course.stock import Stock, Wanted, begin, portions
from deltamem_mlx.training.course.unrelated import Unrelated, never_told
from deltamem_mlx.training.course.vocabulary import likeliest, words_of

NO_IDEA = "No idea."
ENGLAND = English()  # reads the standard library once
TALK = [(f"What is {i}?", f"It is {i}.") for i in range(40)]


def test_no_name_value_or_wording_is_one_of_the_evaluation():
    wordings = {
        text.lower() for r in ASKED for text in (*r.tells, *r.changes, *r.asks) if "{" in text
    }
    trained = {text.lower() for r in RELATIONS for text in (*r.tells, *r.changes, *r.asks)}
    values = {value.lower() for r in ASKED for value in r.values}
    used = {value.lower() for r in RELATIONS for value in r.values}
    months = {month.lower() for month in words.MONTHS}
    assert not trained & wordings
    assert used & values <= months, "only the months: there are no others"
    assert not set(words.NAMES) & set(PEOPLE)


def test_no_message_of_the_evaluation_is_trained_on():
    make = EnglishTeller(0)
    shape = TalkShape(facts=(3, 5), asked=3, updates=0.5)
    trained = {
        message["content"]
        for _ in range(500)
        for message in make.conversation(shape)
        if message["role"] == "user"
    }
    episodes = list(fact_episodes(20))
    assert not trained & {m["content"] for e in episodes for m in e.tell if m["role"] == "user"}
    assert not trained & {e.question for e in episodes}


def test_what_silence_is_measured_on_is_not_trained_on():
    measured = {text.lower() for texts in QUESTIONS.values() for text in texts}
    wordings = [*prompts.WORDINGS, *prompts.ORDINARY]
    asked = {text.lower() for text in prompts.EVERYDAY}
    asked |= {w.format(a, b).lower() for w, fill in wordings for a in fill for b in (a, fill[0])}
    assert len(asked) > 2000
    assert not (asked | {text.lower() for text, _ in CHATS}) & measured
    assert not {line.lower() for line in chats.LINES} & {line.lower() for line in talk.LINES}
    told = chats.two_people(40, random.Random(0))
    assert len(told.split("\n")) == 40
    assert "{" not in told


def test_there_are_histories_of_every_kind():
    make = EnglishTeller(3)
    histories = EnglishHistories(make, library.Library(random.Random(0), count=10), TALK[:8])
    assert sum(kind.share for kind in histories.kinds()) == pytest.approx(1)
    for kind in histories.kinds():
        told = [kind.make() for _ in range(10)]
        assert len({str(messages) for messages in told}) > 5, kind
        assert all(m["content"].strip() for messages in told for m in messages), kind
        assert max(len(m["content"]) for messages in told for m in messages) <= 3000, kind


def test_any_word_of_a_vocabulary_may_be_told_but_none_of_the_evaluation():
    asked = [value for r in ASKED for value in r.values]
    known = ["kayak", "Berlin", "ab", "x1", "NASA", *asked, *PEOPLE]
    for blank, pieces in (("Ġ", ["kay"]), ("▁", ["kay"]), ("", [])):
        tokens = {blank + word: i for i, word in enumerate(known)} | dict.fromkeys(pieces, 99)
        chat = ChatForm(SimpleNamespace(get_vocab=lambda tokens=tokens: tokens))
        assert words_of(chat) == {"Berlin": 1, "kayak": 0}
    make = EnglishTeller(1, ["Qwxyz"])
    values = [fact.value for _ in range(100) for fact in make.facts(1)]
    assert 30 < values.count("Qwxyz") < 70


def test_the_likeliest_words_are_kept():
    assert likeliest({"a": 2, "b": 0, "c": 1}, [0.1, 0.5, 0.4], most=2) == ["a", "c"]


def test_a_conversation_ends_with_its_questions_and_what_was_told_last():
    make = EnglishTeller(3)
    for _ in range(200):
        messages = make.conversation(TalkShape((2, 4), 2, 1.0, 2))
        assert [m["role"] for m in messages] == ["user", "assistant"] * (len(messages) // 2)
        told = " ".join(m["content"] for m in messages[:-4] if m["role"] == "user")
        for question, answer in zip(messages[-4::2], messages[-3::2], strict=True):
            assert question["content"] not in told
            values = [v for r in RELATIONS for v in r.values if v in answer["content"]]
            assert any(value in told for value in values)


def test_where_fewer_facts_are_told_than_turns_are_wanted_talk_is_between_the_questions():
    make = EnglishTeller(3)
    for _ in range(50):
        ends = make.conversation(TalkShape((1, 1), 3))[-6:]
        turns = [(ends[i]["content"], ends[i + 1]["content"]) for i in (0, 2, 4)]
        assert len(set(turns)) == 3
        assert sum(turn in CHATS for turn in turns) == 2
    make_unrelated = unrelated(ENGLAND, make, joined=1)
    silent = [len(make_unrelated.beside(TalkShape((1, 5), 4)).replies) for _ in range(50)]
    assert set(silent) == {2, 3}  # 3 where one fact was told


def test_notes_are_told_without_replies():
    shape = TalkShape((2, 3), 1, 0.3, noted=0.5)
    rows = [EnglishTeller(i).conversation(shape) for i in range(60)]
    noted = [all(m["role"] == "user" for m in row[:-2]) for row in rows]
    assert 15 < sum(noted) < 45
    assert all([m["role"] for m in row[-2:]] == ["user", "assistant"] for row in rows)


def test_chat_between_facts_is_of_the_talk_that_is_given():
    make = EnglishTeller(4)
    own = [("What is a lamp?", "A light.")]
    rows = [make.conversation(TalkShape((2, 2), 1, 0.0, 2), (), own) for _ in range(60)]
    chatted = [sum(m["content"] == "A light." for m in row[:-2]) for row in rows]
    assert set(chatted) == {0, 1, 2}
    assert not {reply for _, reply in CHATS} & {m["content"] for r in rows for m in r}


def test_passages_are_running_text_cut_in_two():
    text = "Words that go on and on, one after the other, until they are enough of them. " * 3
    code = "Values: [1, 2, 3] + (4, 5) == {6: 7, 8: 9}; x = y[0] * z[1] / w[2]. " * 3
    module = ast.parse(f'"""Short.\n\n{text}\n\n{code}\n"""\n')
    assert list(library.paragraphs(module)) == [text.strip()]
    for seed in range(20):
        said, reply = library.passage(text.strip(), random.Random(seed))
        beginning = (said.partition(": ")[2] or said).removeprefix("What comes next? ")
        assert text.startswith(f"{beginning} {reply}")
        assert 20 < len(reply) <= library.REPLY


def test_texts_are_cut_behind_their_beginning_at_whole_sentences():
    beginning, rest = "# Knots\n\n", "There are many of them. " * 30 + "And th"
    for seed in range(20):
        said, reply = cut_text(beginning, rest, random.Random(seed))
        assert (beginning + rest)[:-7].startswith(f"{said} {reply}")
        assert len(beginning) <= len(said) <= PROMPT
        assert len(reply) > REPLY - 1
    told = cut_text(beginning, "Word after word after word. " * 60, random.Random(0))
    assert told is not None and REPLY <= len(told[1]) <= LONGEST, "the rest is not learned"
    assert cut_text(beginning, "Too short. ", random.Random(0)) is None


def unrelated(language, teller, joined: int) -> Unrelated:
    strangers = never_told(teller, 5)
    answers = {question: NO_IDEA for _, question in strangers}
    return Unrelated(language, teller, TALK, strangers, answers, [], joined=joined)


@pytest.mark.parametrize("language", [ENGLAND, Little()], ids=["english", "little"])
def test_what_is_unrelated_is_marked(language):
    teller = language.teller(5)
    make, never = unrelated(language, teller, joined=3), 0
    for _ in range(50):
        messages, replies = make.alone(2)
        assert replies == {len(messages) - 3, len(messages) - 1}
        messages, replies = make.beside(TalkShape((2, 4), 2))
        assert len(replies) == 1 and replies < {len(messages) - 3, len(messages) - 1}
        (silent,) = replies
        turn = messages[silent - 1]["content"], messages[silent]["content"]
        assert turn in TALK or turn[1] == NO_IDEA
        never += turn[1] == NO_IDEA
    assert 0 < never < 25, "some of it asks for what nobody told"


@pytest.mark.parametrize(
    ("language", "stages"), [(ENGLAND, ENGLISH), (Little(), LITTLE)], ids=["english", "little"]
)
def test_the_rows_of_a_stage_follow_from_its_seed(language, stages):
    start = begin(language, Wanted(20, 0, 40), (), seed=1)
    train, valid = portions(start, TALK, [], TALK)
    stock = Stock(train, valid, {question: "No." for _, question in start.strangers}, [])
    for stage in stages:
        rows = stage_rows(stage, language, stock, 40, seed=3)
        assert rows == stage_rows(stage, language, stock, 40, seed=3)
        assert rows != stage_rows(stage, language, stock, 40, seed=4)
        share = sum(bool(row.unrelated) for row in rows) / len(rows)
        assert abs(share - (stage.unrelated + (1 - stage.unrelated) * stage.talk)) < 0.25
        for row in rows:
            for place, message in enumerate(row.messages):
                learned = message["role"] == "assistant" and place not in row.unrelated
                turn = row.messages[place - 1]["content"], message["content"]
                assert not (learned and turn in TALK and place >= len(row.messages) - 2)
    held_out = stage_rows(stages[-1], language, stock, 40, seed=3, held_out=True)
    asked = {m["content"] for row in held_out for m in row.messages[-4::2] if row.unrelated}
    trained = {text for text, _ in stock.train.asked}
    assert not asked & trained


def test_a_share_of_the_conversations_has_another_system_text():
    start = begin(ENGLAND, Wanted(20, 0, 40), (), seed=1)
    train, valid = portions(start, TALK, [], TALK)
    stock = Stock(train, valid, {question: "No." for _, question in start.strangers}, [])
    other = [[{"role": "system", "content": text}] for text in ("", "Be brief.")]
    for stage in ENGLISH:
        rows = stage_rows(stage, ENGLAND, stock, 200, seed=3, openings=other)
        opened = [row for row in rows if row.messages[0]["role"] == "system"]
        assert abs(len(opened) / len(rows) - stage.opened) < 0.1
        assert {row.messages[0]["content"] for row in opened} == {"", "Be brief."}
        for row in rows:
            assert all(row.messages[place]["role"] == "assistant" for place in row.unrelated)


@pytest.mark.parametrize("own", ["", "{{'You are Ada. '}}"], ids=["none", "its own"])
def test_a_template_with_a_system_text_of_its_own_is_learned_without_it_too(own):
    chat = ChatForm(load_tokenizer(TOKENIZER))
    chat.tokenizer.chat_template = (
        "{% if messages[0]['role'] != 'system' %}" + own + "{% endif %}"
        "{% for m in messages %}{{ m['role'] + ': ' + m['content'] + '\n' }}{% endfor %}"
        "{% if add_generation_prompt %}{{ 'assistant: ' }}{% endif %}"
    )
    said = [begin[0]["content"] for begin in chat.openings()]
    assert ("" in said) == bool(own)
    assert len(said) > 3
    refusing = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no') }}{% endif %}"
    chat.tokenizer.chat_template = refusing + chat.tokenizer.chat_template
    assert chat.openings() == []


def test_own_conversations_are_among_those_of_a_stage():
    start = begin(Little(), Wanted(8, 0, 8), (), seed=1)
    train, valid = portions(start, TALK, [], TALK)
    stock = Stock(train, valid, {question: "No." for _, question in start.strangers}, [])
    own = stage_rows(LITTLE[0], Little(), stock, 2, seed=9)
    rows = stage_rows(LITTLE[0], Little(), stock, 100, seed=3, own=own)
    assert 15 < sum(row in own for row in rows) < 45


def test_own_conversations_are_trained_on_or_held_out_but_not_both():
    messages = [{"role": r, "content": "x"} for r in ("user", "assistant") * 2]
    own = [ConversationRow(messages, None, f"own {i}") for i in range(40)]
    begun = begin(ENGLAND, Wanted(8, 0, 8), (), 0)
    train, valid = portions(begun, TALK, [], TALK)
    stock = Stock(train, valid, {q: "No." for _, q in begun.strangers}, [])
    found = [
        {
            row.where
            for row in stage_rows(ENGLISH[0], ENGLAND, stock, 200, seed=1, held_out=held, own=own)
            if row.where.startswith("own")
        }
        for held in (False, True)
    ]
    assert all(found) and not set.intersection(*found)
