"""What a request adds to a memory: which of its messages are new, and which are none of it."""

import time
from dataclasses import replace

import pytest
from serving import ANSWER, FACT, QUESTION, Client, assistant, builtin_pair, states_in, user

from deltamem_mlx.serve.requests.bodies import MemoryOptions
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings
from deltamem_mlx.serve.turns.tasks import as_said, is_task

TURNS = [FACT, "ben is a doctor .", QUESTION, "what is the job of ben ?"]
TITLE = """### Task:
Generate a concise, 3-5 word title with an emoji summarizing the chat history.
### Output:
JSON format: { "title": "your concise title here" }
### Chat History:
<chat_history>
USER: anna lives in paris .
ASSISTANT: noted.
</chat_history>"""
TAGS = "### Task:\nGenerate 1-3 broad tags categorizing the main themes of the chat history."
NEXT = "### Task:\nSuggest 3-5 relevant follow-up questions that the user might ask next."
TASKS = {
    "title": TITLE,
    "tags": TAGS,
    "next questions": NEXT,
    "a history that is wrapped": "What emoji fits?\n<chat_history>\nUSER: hi\n</chat_history>",
    "a title, with its form": (
        "Provide a concise, 5-word-or-less title for the conversation, using title case "
        "conventions. Only return the title itself.\n\nConversation:\nanna lives in paris ."
    ),
    "a language and a title": (
        "Analyze this conversation and provide:\n1. The detected language of the conversation\n"
        "2. A concise title in the detected language (5 words or less, no punctuation)\n\nhi"
    ),
    "a title of so many words": (
        "Please generate a four to five word title summarizing our conversation without any "
        "lead-in, punctuation, quotation marks, periods, symbols, bold text, or additional text."
    ),
}
NO_TASK = MemoryOptions("any")


def system(text: str) -> dict:
    return {"role": "system", "content": text}


@pytest.mark.parametrize("task", TASKS.values(), ids=TASKS)
@pytest.mark.parametrize("history", ["alone", "after the history"])
def test_a_clients_task_is_answered_and_not_remembered(
    client: Client, task: str, history: str
) -> None:
    said = [user(FACT)]
    said.append(assistant(client.chat(said, "tasked", memory={"reset": True}).text))
    before = client.memory("GET", "tasked").json
    states = states_in(client.memory("GET", "tasked", "/export").body)
    asked = [user(task)] if history == "alone" else [*said, user(task)]
    reply = client.chat(asked, "tasked", max_tokens=4)
    assert reply.status == 200 and reply.json["usage"]["completion_tokens"] > 0
    assert "memory" not in reply.json["usage"]
    assert client.memory("GET", "tasked").json == before
    after = states_in(client.memory("GET", "tasked", "/export").body)
    assert all((after[name] == state).all() for name, state in states.items())
    go_on = client.chat([*said, user(QUESTION)], "tasked")
    assert go_on.memory["messages_known"] == 2 and ANSWER in go_on.text


def test_a_task_to_a_new_key_begins_no_memory(client: Client) -> None:
    assert client.chat(TITLE, "nothing-yet", max_tokens=4).status == 200
    assert client.memory("GET", "nothing-yet").status == 404


@pytest.mark.parametrize(
    "said",
    [
        FACT,
        "What is a good title for my book?",
        "Write a title page for the conversation that I had with anna.",
        "Please write down: the title of the chat show is Late Night.",
        "The task: tell ben about oslo.",
        "#Task list\nbuy milk",
        "My task is to generate words.",
        "### Task:\nRespond to the user query using the provided context, citing.\n<context>\n"
        "oslo is a town .\n</context>\n\nwhere does anna live ?",
    ],
)
def test_what_a_person_says_is_no_task(said: str) -> None:
    assert not is_task([user(said)], NO_TASK)
    assert not is_task([{"role": "assistant", "content": TITLE}], NO_TASK)
    assert not is_task([user(TITLE), user(said)], NO_TASK)


@pytest.mark.parametrize(
    "around", ["{}", "<user_query>{}</user_query>", "\n<user_query>{}</USER_QUERY>\n"]
)
def test_what_was_said_is_taken_out_of_retrieved_texts(around: str) -> None:
    asked = around.format("does\n\nanna live ?")
    retrieved = "### Task\n\nRespond to the user query using the provided context\n<context>\nx"
    (said,) = as_said([user(f"{retrieved}</context>\n{asked} \n")])
    assert said["content"] == "does\n\nanna live ?"


@pytest.mark.parametrize(
    "said",
    [
        "History:{}x",
        "Query:{}History:{}x",
        "### Task:{}x",
        "### Task:{}Respond to the user query using the provided context{}x",
        "### Task:\nRespond to the user query using the provided context</context>{}x",
        "### Task:\nRespond to the user query using the provided context</context>x{}x",
        "{}please{}x",
        "write{}title{}chat",
    ],
)
def test_blank_lines_are_read_in_linear_time(said: str) -> None:
    """A regular expression lets no other thread run."""
    messages = [user(said.replace("{}", "\n" * 64_000))]
    began = time.thread_time()
    is_task(messages, NO_TASK)
    as_said(messages)
    assert time.thread_time() - began < 3


@pytest.mark.parametrize("says", [{"goes_on": True}, {"takes_back": False}], ids=str)
def test_where_a_client_says_what_is_new_a_text_makes_no_task(says: dict) -> None:
    assert is_task([user(TITLE)], NO_TASK)
    assert not is_task([user(TITLE)], replace(NO_TASK, **says))
    assert is_task([user("hi")], replace(NO_TASK, task=True, **says))


def test_a_clock_in_the_system_prompt_is_seen_and_not_written_again(client: Client) -> None:
    """The context stays, as with a prompt that does not change; so do the counts."""
    clock, fixed, alone = [], [], []
    for i, text in enumerate(TURNS * 2):
        now = system(f"be brief . it is 10 : {i} .")
        clock.append(client.chat([now, user(text)], "clock", max_tokens=1).memory)
        same = system("be brief . it is 10 : 0 .")
        fixed.append(client.chat([same, user(text)], "fixed", max_tokens=1).memory)
        alone.append(client.chat(text, "alone", max_tokens=1).memory)
    assert [m["tokens_written"] for m in clock] == [m["tokens_written"] for m in fixed]
    assert clock[0]["tokens_written"] > alone[0]["tokens_written"]
    assert [m["tokens_written"] for m in clock[1:]] == [m["tokens_written"] for m in alone[1:]]
    assert [m["context_tokens"] for m in clock] == [m["context_tokens"] for m in fixed]


def test_another_system_prompt_is_seen_with_all_that_was_said(client: Client) -> None:
    client.chat([system("be brief ."), user(FACT)], "prompted", max_tokens=4)
    before = client.memory("GET", "prompted").json
    longer = system("be kind . be kind . be kind .")
    after = client.chat([longer, user(QUESTION)], "prompted", memory={"read_only": True})
    assert after.memory["tokens_written"] == 0
    alone = client.chat([system("be brief ."), user(QUESTION)], "other", max_tokens=24).memory
    assert after.memory["context_tokens"] > before["context_tokens"] + alone["tokens_written"] - 8
    dropped = client.chat([longer, user(QUESTION)], "prompted", memory={"context": "drop"})
    assert dropped.memory["context_tokens"] < after.memory["context_tokens"]


def test_other_tools_keep_what_was_said_in_sight(client: Client) -> None:
    client.chat(FACT, "tooled", max_tokens=4)
    before = client.memory("GET", "tooled").json
    other = client.chat(QUESTION, "tooled", chat_template_kwargs={"enable_thinking": False})
    assert other.memory["context_tokens"] > before["context_tokens"]


def test_an_edited_history_is_refused_and_nothing_new_too(client: Client) -> None:
    first = client.chat(FACT, "edited").text
    edited = [user("anna lives in paris ."), assistant(first), user(QUESTION)]
    assert client.chat(edited, "edited").code == "history_conflict"
    assert client.chat([user(FACT), assistant(first)], "edited").code == "nothing_new"
    fresh = client.chat(edited, "edited", memory={"reset": True})
    assert "paris" in fresh.text and fresh.memory["turns"] == 1


def test_a_refused_history_is_told_how_it_differs() -> None:
    settings = ServeSettings(port=0, undo_turns=0)
    with Server(*builtin_pair(), "builtin", settings) as serving:
        client, said = Client(serving.url), []
        for text in TURNS[:2]:
            said.append(user(text))
            said.append(assistant(client.chat(said, "differs").text))
        again = client.chat(said[:3], "differs")  # a client's "regenerate"
        assert again.code == "history_conflict" and "and more after them" in again.body.decode()
        edit = client.chat([*said[:2], user("chris plays viola .")], "differs")
        assert edit.code == "history_conflict" and "Message 3 " in edit.body.decode()
        other = client.chat([user("hi"), assistant("ho"), user("hi")], "differs")
        assert other.code == "history_conflict" and "was not told" in other.body.decode()
        assert client.memory("GET", "differs").json["turns"] == 2
