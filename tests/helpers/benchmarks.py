"""Small files in the schemas of the benchmarks, in words of our own."""

import json
from pathlib import Path

# A turn may share a picture; a session may have a date and not have been held.
LOCOMO = [
    {
        "sample_id": "talk-1",
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bob",
            "session_1_date_time": "1:00 pm on 2 May, 2023",
            "session_1": [
                {"speaker": "Ann", "dia_id": "D1:1", "text": "I got a dog!"},
                {"speaker": "Bob", "dia_id": "D1:2", "text": "Nice.", "blip_caption": "a cat"},
            ],
            "session_2_date_time": "2:00 pm on 3 May, 2023",
            "session_2": [{"speaker": "Bob", "dia_id": "D2:1", "text": "I run."}],
            "session_10_date_time": "4:00 pm on 9 May, 2023",
            "session_10": [{"speaker": "Ann", "dia_id": "D10:1", "text": "Me too."}],
            "session_11_date_time": "5:00 pm on 9 May, 2023",
        },
        "qa": [
            {"question": "Pets?", "answer": "dog, cat", "category": 1, "evidence": ["D1:1"]},
            {"question": "When?", "answer": 2023, "category": 2, "evidence": ["D1:1"]},
            {"question": "Fit?", "answer": "Yes; both run", "category": 3, "evidence": []},
            {"question": "Who runs?", "answer": "Bob", "category": 4, "evidence": []},
            {"question": "Fish?", "adversarial_answer": "a cod", "category": 5, "evidence": []},
        ],
    },
    {
        "sample_id": "talk-2",
        "conversation": {
            "speaker_a": "Cid",
            "speaker_b": "Dee",
            "session_1_date_time": "1:00 pm on 4 June, 2023",
            "session_1": [{"speaker": "Cid", "dia_id": "D1:1", "text": "I sold my car."}],
        },
        "qa": [{"question": "Sold?", "answer": "car", "category": 4, "evidence": []}],
    },
]

HOTPOTQA = [
    {
        "id": "q1",
        "question": "Where is the source of the Elm?",
        "answer": "Ash Hill",
        "type": "bridge",
        "level": "hard",
        "supporting_facts": {"title": ["Elm"], "sent_id": [0]},
        "context": {
            "title": ["Elm", "Oak"],
            "sentences": [["Elm rises on Ash Hill.", " It is short."], ["Oak is a town."]],
        },
    },
    {
        "id": "q2",
        "question": "Is Oak a town?",
        "answer": "yes",
        "type": "comparison",
        "level": "easy",
        "supporting_facts": {"title": ["Oak"], "sent_id": [0]},
        "context": {"title": ["Oak"], "sentences": [["Oak is a town."]]},
    },
]

AGENT = [
    {
        "context": "0. Al is in Rome. 1. Bo is in Bonn. 2. Al is in Oslo.",
        "questions": ["Where is Al?", "Where is Bo?"],
        "answers": [["Oslo"], ["Bonn"]],
        "metadata": {"source": "factconsolidation_sh_6k", "qa_pair_ids": ["f0", "f1"]},
    },
    {
        "context": "He came. He saw. He left.",
        "questions": ["He won or he lost?"],
        "answers": [["he won"]],
        "metadata": {"source": "eventqa_full", "previous_events": ["He came."]},
    },
    {
        "context": "User: hello. Bot: hi.",
        "questions": ["Recommend."],
        "answers": [["7"]],
        "metadata": {"source": "recsys_redial_full"},
    },
]

# Chats need not be in order; an answer may be a number; ids that end in _abs have no answer.
LONGMEM = [
    {
        "question_id": "aa11",
        "question_type": "knowledge-update",
        "question": "Where do I live now?",
        "answer": "Oslo",
        "question_date": "2023/06/02 (Fri) 09:00",
        "haystack_session_ids": ["s2", "answer_s1", "answer_s3"],
        "haystack_dates": [
            "2023/05/30 (Tue) 10:00",
            "2023/05/01 (Mon) 08:15",
            "2023/06/01 (Thu) 21:40",
        ],
        "haystack_sessions": [
            [{"role": "user", "content": "Any soup?"}, {"role": "assistant", "content": "Yes."}],
            [{"role": "user", "content": "I live in Rome.", "has_answer": True}],
            [
                {"role": "user", "content": "I moved to Oslo.", "has_answer": True},
                {"role": "assistant", "content": "Welcome!"},
            ],
        ],
        "answer_session_ids": ["answer_s1", "answer_s3"],
    },
    {
        "question_id": "bb22_abs",
        "question_type": "single-session-user",
        "question": "What is my cat called?",
        "answer": "You did not mention a cat.",
        "question_date": "2023/06/02 (Fri) 10:00",
        "haystack_session_ids": ["s4"],
        "haystack_dates": ["2023/05/02 (Tue) 08:15"],
        "haystack_sessions": [[{"role": "user", "content": "My dog is Rex."}]],
        "answer_session_ids": ["s4"],
    },
    {
        "question_id": "cc33",
        "question_type": "multi-session",
        "question": "How many plants do I have?",
        "answer": 3,
        "question_date": "2023/06/02 (Fri) 11:00",
        "haystack_session_ids": ["s5"],
        "haystack_dates": ["2023/05/03 (Wed) 08:15"],
        "haystack_sessions": [[{"role": "user", "content": "I got two ferns and a fig."}]],
        "answer_session_ids": ["s5"],
    },
    {
        "question_id": "dd44",
        "question_type": "single-session-preference",
        "question": "Can you suggest a film?",
        "answer": "The user would prefer quiet films.",
        "question_date": "2023/06/02 (Fri) 12:00",
        "haystack_session_ids": ["s6"],
        "haystack_dates": ["2023/05/04 (Thu) 08:15"],
        "haystack_sessions": [[{"role": "user", "content": "I like quiet films."}]],
        "answer_session_ids": ["s6"],
    },
]


def written(path: Path, rows: object) -> Path:
    """The rows as a .json or .jsonl file."""
    if path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        path.write_text(json.dumps(rows))
    return path
