"""Open WebUI, played: its headers, its tasks under the chat's own id, regenerate, edit, delete.

The memory of a chat is compared with one that was told what is left of the conversation, and
nothing else.
"""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from serving import ANSWER, CHAT, FACT, QUESTION, Client, Pair, Reply, assistant, user
from taking_back import TakesBack

from deltamem_mlx.memory.file import MemoryFile, read_memory
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

OTHER, JOB = "anna lives in paris .", "ben is a doctor ."
# How its published templates open; {0} is the conversation.
TASKS = {
    "title_generation": "### Task:\nGenerate a concise, 3-5 word title with an emoji.\n"
    "### Chat History:\n<chat_history>\n{0}\n</chat_history>",
    "tags_generation": "### Task:\nGenerate 1-3 broad tags categorizing the main themes.\n"
    "### Chat History:\n<chat_history>\n{0}\n</chat_history>",
    "follow_up_generation": "### Task:\nSuggest 3-5 relevant follow-up questions or prompts.\n"
    "### Chat History:\n<chat_history>\n{0}\n</chat_history>",
    "query_generation": "### Task:\nAnalyze the chat history to determine the necessity of "
    "generating search queries.\n<chat_history>\n{0}\n</chat_history>",
    "image_prompt_generation": "### Task:\nGenerate a detailed prompt for am image generation "
    "task.\n<chat_history>\n{0}\n</chat_history>",
    "autocomplete_generation": "### Task:\nYou are an autocompletion system.\n### Context:\n"
    "<chat_history>\n{0}\n</chat_history>\n<type>General</type>\n<text>where does</text>",
    "emoji_generation": "Your task is to reflect the speaker's likely facial expression through a "
    "fitting emoji.\n\nMessage: ```{0}```",
    "moa_response_generation": "You have been provided with a set of responses from various models "
    'to the latest user query: "hi"\n\nResponses from models: {0}',
    "function_calling": "History:\n{0}\nQuery: where does anna live ?",
}
RETRIEVED = (
    "### Task:\nRespond to the user query using the provided context, incorporating inline "
    "citations in the format [id].\n\n<context>\n<source id='1'>ben is a doctor .</source>\n"
    "</context>\n\n{0}"
)


@pytest.fixture(scope="module")
def client(pair: Pair) -> Iterator[Client]:
    settings = ServeSettings(
        port=0,
        one_chat=True,
        session_headers=("X-OpenWebUI-Chat-Id",),
        task_headers=("X-Other-Task",),
    )
    with Server(*pair, "builtin", settings) as serving:
        yield Client(serving.url)


class OpenWebUI(TakesBack):
    """One of its chats: all of the history each time, streamed; all its tasks after the first
    answer, and that for a title after the others.

    - custom: how a provider's headers were set up in it: with the task in one of them.
    """

    def __init__(self, client: Client, chat: str, *, custom: bool = False):
        self.client, self.chat, self.custom = client, chat, custom
        self.said: list[dict] = []

    def post(self, messages: list[dict], *, task: str = "", stream: bool = False) -> Reply:
        headers = {
            "X-OpenWebUI-User-Name": "Anna%20B",
            "X-OpenWebUI-User-Id": "8f14e45f-ceea-467f-9d1c-000000000001",
            "X-OpenWebUI-User-Email": "anna@example.org",
            "X-OpenWebUI-User-Role": "user",
            "X-OpenWebUI-Chat-Id": self.chat,
        }
        if self.custom:
            headers["X-OpenWebUI-Task"] = task
        body = {"model": "default_model", "messages": messages, "stream": stream}
        body["max_tokens"] = 24 if stream else 1
        if stream:
            body["stream_options"] = {"include_usage": True}
        reply = self.client.request("POST", CHAT, body, headers)
        assert reply.status == 200, reply.body
        return reply

    def send(self, *, retrieved: bool = False) -> str:
        messages = list(self.said)
        if retrieved:
            messages[-1] = user(RETRIEVED.format(messages[-1]["content"]))
        lines = self.post(messages, stream=True).body.split(b"\n")
        chunks = [json.loads(x[6:]) for x in lines if x.startswith(b"data: {")]
        text = "".join(
            c["choices"][0]["delta"].get("content") or "" for c in chunks if c["choices"]
        )
        assert chunks[-1]["usage"]["memory"]["session"] == self.chat
        self.said.append(assistant(text))
        self.work_aside()
        return text

    def work_aside(self) -> None:
        """Its tasks, which see the conversation as text and come under the chat's id."""
        tasks = TASKS if len(self.said) == 2 else {"title_generation": TASKS["title_generation"]}
        told = "\n".join(f"{m['role'].upper()}: {m['content']}" for m in self.said)
        for task, template in tasks.items():
            text = "what is oslo ?" if self.custom else template.format(told)
            reply = self.post([user(text)], task=task)
            assert "memory" not in reply.json["usage"]

    def ask(self, text: str, *, retrieved: bool = False) -> str:
        self.said.append(user(text))
        return self.send(retrieved=retrieved)


def exported(client: Client, key: str, folder: Path) -> MemoryFile:
    path = folder / "exported.safetensors"
    path.write_bytes(client.memory("GET", key, "/export").body)
    return read_memory(path)


@pytest.mark.parametrize("custom", [False, True], ids=["templates", "header"])
def test_the_memory_holds_the_conversation_and_nothing_else(
    client: Client, tmp_path: Path, custom: bool
) -> None:
    chat = OpenWebUI(client, f"chat {custom}", custom=custom)
    chat.ask(JOB)
    chat.ask(OTHER)
    chat.regenerate()
    chat.edit(1, FACT)
    answer = chat.ask(QUESTION)
    assert ANSWER in answer and chat.regenerate() == answer
    for message in chat.said[::2]:  # a memory that is told what is left, and nothing else
        client.chat(message["content"], f"plain {custom}", memory={"one_chat": False})
    ours = exported(client, chat.chat, tmp_path)
    plain = exported(client, f"plain {custom}", tmp_path)
    assert ours.tokens_written == plain.tokens_written and ours.told.turns == 3
    assert all((ours.states[i] == plain.states[i]).all() for i in plain.states)
    # The chat is deleted.
    assert client.memory("DELETE", chat.chat).status == 200
    assert client.memory("GET", chat.chat).status == 404


def test_retrieved_texts_around_a_message_are_no_task_and_the_message_is_known_again(
    client: Client,
) -> None:
    chat = OpenWebUI(client, "retrieved", custom=True)
    chat.said = [user(FACT)]
    chat.said.append(assistant(client.chat(chat.said, "retrieved").text))
    chat.ask(QUESTION, retrieved=True)
    chat.ask(JOB)
    assert client.memory("GET", "retrieved").json["turns"] == 3


@pytest.mark.parametrize(
    ("header", "value", "is_one"),
    [
        ("X-Delta-Mem-Task", "title", True),
        ("X-Other-Task", "title", True),
        ("X-OpenWebUI-Task", "None", False),
        ("X-OpenWebUI-Task", "{{TASK}}", False),
        ("X-Third-Task", "title", False),
    ],
)
def test_a_header_says_what_a_task_is(
    client: Client, header: str, value: str, is_one: bool
) -> None:
    body = {"messages": [user(FACT)], "max_tokens": 8}
    for route in (CHAT, "/v1/messages"):
        key = f"{header} {value} {route}"
        named = {header: value, "X-Delta-Mem-Session": key}
        usage = client.request("POST", route, body, named).json["usage"]
        assert ("memory" not in usage) == is_one
        assert client.memory("GET", key).status == (404 if is_one else 200)


def test_a_body_says_that_it_is_a_task(client: Client) -> None:
    assert "memory" not in client.chat(FACT, "said", memory={"task": True}).json["usage"]
    assert client.memory("GET", "said").status == 404
    assert client.chat(FACT, "said", memory={"task": 1}).code == "invalid_value"
