"""Memory files that clients send: forged ones, with a right checksum, are refused in words."""

import hashlib
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save
from serving import CHAT, FACT, QUESTION, Client, builtin_pair, user

from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

SAMPLED = {"messages": [user("hi")], "temperature": 0.7, "max_tokens": 2}
Tensors = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    with Server(*builtin_pair(), "builtin", ServeSettings(port=0)) as server:
        client = Client(server.url)
        client.chat(FACT, "kept")
        yield client
        assert client.request("POST", CHAT, SAMPLED).status == 200  # after all of it


@pytest.fixture
def parts(client: Client, tmp_path: Path) -> tuple[dict, dict[str, str], Tensors]:
    """What a file holds: what is said of the memory, the rest of the metadata, the tensors."""
    path = tmp_path / "kept.safetensors"
    path.write_bytes(client.memory("GET", "kept", "/export").body)
    with safe_open(path, framework="np") as file:
        metadata = file.metadata()
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    return json.loads(metadata["memory"]), metadata, tensors


def forged(values: object, metadata: dict[str, str], tensors: Tensors) -> bytes:
    """A file with the checksum that belongs to it."""
    said = values if isinstance(values, str) else json.dumps(values, sort_keys=True)
    digest = hashlib.sha256(b"2" + said.encode())
    for kind in ("state.", "history."):
        named = {int(n.removeprefix(kind)): x for n, x in tensors.items() if n.startswith(kind)}
        for i in sorted(named):
            about = f"{named[i].dtype} {named[i].shape}"
            digest.update((f"{i} {about}" if kind == "state." else about).encode())
            digest.update(np.ascontiguousarray(named[i]).tobytes())
    return save(tensors, metadata | {"memory": said, "checksum": digest.hexdigest()})


def assert_refused(client: Client, file: bytes) -> None:
    reply = client.memory("PUT", "forged", body=file)
    assert reply.status == 400 and reply.code == "bad_memory_file", reply.body
    message = reply.json["error"]["message"]
    assert len(message) < 600 and "/tmp" not in message and "\n" not in message
    assert client.memory("GET", "forged").status == 404


WILD = [
    None, True, False, -1, 2**31, 2**63, 10**30, 1.5, 1e308, "", "x", "x" * 100_000, [], [[]],
    [-1], [2**31], [2**63], [10**30], [1.5], [True], ["1"], [None], [0, 0], [0] * 1000, {},
    {"a": 1},
]  # fmt: skip
FITTING = {
    ("base_model", "{}"), ("base_model", '{"a": 1}'), ("created", '""'), ("created", '"x"'),
    ("note", '""'), ("note", '"x"'),
}  # fmt: skip


@pytest.mark.parametrize("field", ["adapter", "base_model", "tokens_written", "created", "note"])
def test_every_field_of_a_file_that_is_sent_is_checked(
    client: Client, parts: tuple[dict, dict[str, str], Tensors], field: str
) -> None:
    values, metadata, tensors = parts
    for wild in WILD:
        if (field, json.dumps(wild)) in FITTING or (field == "note" and isinstance(wild, str)):
            continue
        assert_refused(client, forged(values | {field: wild}, metadata, tensors))
    left = {name: value for name, value in values.items() if name != field}
    if field != "note":
        assert_refused(client, forged(left, metadata, tensors))
    assert client.request("POST", CHAT, SAMPLED).status == 200


WHOLE = ["", "[", "[]", "null", "1", '"x"', "{}", "[" * 100_000, '{"a":' * 100_000, "9" * 5000]


@pytest.mark.parametrize("said", WHOLE, ids=[said[:6] for said in WHOLE])
def test_what_is_said_of_a_memory_has_to_be_an_object(
    client: Client, parts: tuple[dict, dict[str, str], Tensors], said: str
) -> None:
    _, metadata, tensors = parts
    assert_refused(client, forged(said, metadata, tensors))


STATES: dict[str, Callable[[Tensors], Tensors]] = {
    "none": lambda t: {},
    "one less": lambda t: dict(list(t.items())[1:]),
    "one more": lambda t: t | {"state.99": next(iter(t.values()))},
    "a negative layer": lambda t: t | {"state.-1": next(iter(t.values()))},
    "another name": lambda t: t | {"x": next(iter(t.values()))},
    "a layer twice": lambda t: t | {"state.0" + name[6:]: x for name, x in t.items()},
    "half precision": lambda t: {n: x.astype(np.float16) for n, x in t.items()},
    "doubles": lambda t: {n: x.astype(np.float64) for n, x in t.items()},
    "integers": lambda t: {n: x.astype(np.int32) for n, x in t.items()},
    "two conversations": lambda t: {n: np.concatenate([x, x]) for n, x in t.items()},
    "no conversation": lambda t: {n: x[:0] for n, x in t.items()},
    "a larger rank": lambda t: {
        n: np.pad(x, [(0, 0), (0, 0), (0, 1), (0, 1)]) for n, x in t.items()
    },
    "not square": lambda t: {n: x[..., :-1] for n, x in t.items()},
    "fewer heads": lambda t: {n: np.repeat(x, 3, axis=1) for n, x in t.items()},
    "flat": lambda t: {n: x.reshape(-1) for n, x in t.items()},
    "NaN": lambda t: {n: x * np.float32("nan") for n, x in t.items()},
    "infinite": lambda t: {n: x + np.float32("inf") for n, x in t.items()},
}


@pytest.mark.parametrize("change", STATES.values(), ids=STATES.keys())
def test_states_that_are_not_this_models_are_refused(
    client: Client, parts: tuple[dict, dict[str, str], Tensors], change: Callable
) -> None:
    values, metadata, tensors = parts
    past = {name: x for name, x in tensors.items() if name.startswith("history.")}
    changed = change({name: x for name, x in tensors.items() if name not in past}) | past
    assert_refused(client, forged(values, metadata, changed))
    assert_refused(client, forged(values | {"tokens_written": [0, 0]}, metadata, changed))


def test_a_tensor_of_eight_bits_is_refused(client: Client) -> None:
    said = json.dumps({"state.0": {"dtype": "F8_E4M3", "shape": [2], "data_offsets": [0, 2]}})
    assert_refused(client, len(said).to_bytes(8, "little") + said.encode() + bytes(2))


def test_every_field_of_a_history_that_is_sent_is_checked(
    client: Client, parts: tuple[dict, dict[str, str], Tensors]
) -> None:
    values, metadata, tensors = parts
    assert client.memory("PUT", "fits", body=forged(values, metadata, tensors)).status == 201
    for part in ("told", "history"):
        whole = values[part][0] if part == "history" else values[part]
        for field in whole:
            for wild in (*WILD, "é", ["x"] * 9000, [["0" * 16]]):
                if type(wild) is type(whole[field]) and (wild == [] or isinstance(wild, bool)):
                    continue
                changed = whole | {field: wild}
                if field in ("created", "at", "source") and wild in ("", "x", "é"):
                    continue
                changed = [changed] if part == "history" else changed
                assert_refused(client, forged(values | {part: changed}, metadata, tensors))
        more = whole | {"more": 1}
        more = [more] if part == "history" else more
        assert_refused(client, forged(values | {part: more}, metadata, tensors))
        for wild in WILD:
            if not (part == "history" and wild == []):
                assert_refused(client, forged(values | {part: wild}, metadata, tensors))
    assert_refused(client, forged(values | {"history": []}, metadata, tensors))
    for wild in (np.zeros((2, 2), np.uint8), np.zeros(3, np.float32)):
        assert_refused(client, forged(values, metadata, tensors | {"history.0": wild}))
    for name in ("history.1", "history.-1"):
        extra = tensors | {name: np.zeros(3, np.uint8)}
        assert_refused(client, forged(values, metadata, extra))
    assert client.request("POST", CHAT, SAMPLED).status == 200


@pytest.mark.parametrize("packed", [np.zeros(0, np.uint8), np.full(9, 120, np.uint8)])
def test_turns_that_cannot_be_unpacked_are_refused_when_they_are_taken_back(
    client: Client, parts: tuple[dict, dict[str, str], Tensors], packed: np.ndarray
) -> None:
    values, metadata, tensors = parts
    file = forged(values, metadata, tensors | {"history.0": packed})
    assert client.memory("PUT", "torn", body=file).status in (200, 201)
    assert client.memory("POST", "torn", "/undo").code == "memory_unusable"
    assert client.chat(QUESTION, "torn", max_tokens=2).status == 200


NOTE = {"format": "deltamem_mlx.serve", "salt": "00" * 8, "system": [], "messages": [], "turns": 1}
NOTES = [
    {field: wild}
    for field in NOTE
    for wild in (
        None, True, -1, 2**63, 10**4000, 1.5, "x", "é", "0", [], [1], [None], ["x"] * 9000, {},
    )
]  # fmt: skip


@pytest.mark.parametrize("one_in", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_whatever_a_note_says_of_the_conversation_the_memory_can_be_used(
    client: Client, parts: tuple[dict, dict[str, str], Tensors], one_in: int
) -> None:
    """The history in it is the server's own account; another's begins a new one."""
    values, metadata, tensors = parts
    values = {name: value for name, value in values.items() if name not in ("told", "history")}
    tensors = {name: x for name, x in tensors.items() if name.startswith("state.")}
    notes = [
        "",
        "[]",
        "null",
        "{",
        "[" * 100_000,
        *(json.dumps(NOTE | change) for change in NOTES[::one_in]),
    ]
    for note in notes:
        sent = client.memory(
            "PUT", "noted", body=forged(values | {"note": note}, metadata, tensors)
        )
        assert sent.status in (200, 201, 400)
        if sent.status == 400:
            continue
        assert client.request("GET", "/v1/memories").status == 200
        reply = client.chat(QUESTION, "noted", max_tokens=2)
        assert reply.status == 200, (note[:200], reply.body)
        assert client.memory("GET", "noted").json["turns"] in (1, 2)
        assert client.memory("GET", "noted", "/export").status == 200


@pytest.mark.parametrize("size", [1e10, 1e19, 1e30, 3e38])
def test_states_as_large_as_numbers_get_end_no_answer_but_their_own(
    client: Client, parts: tuple[dict, dict[str, str], Tensors], size: float
) -> None:
    values, metadata, tensors = parts
    large = {name: np.full_like(x, size) for name, x in tensors.items() if "state" in name}
    large = {name: large.get(name, x) for name, x in tensors.items()}
    assert client.memory("PUT", "large", body=forged(values, metadata, large)).status in (200, 201)
    reply = client.chat(QUESTION, "large", temperature=0.7, max_tokens=2)
    assert reply.status == 200 or reply.code == "memory_overflow", reply.body
    assert client.memory("GET", "large", "/export").status == 200  # as it was, or finite
    assert client.request("POST", CHAT, SAMPLED).status == 200
    client.memory("DELETE", "large")


def test_a_full_disk_for_temporary_files_is_said(
    client: Client, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = client.memory("GET", "kept", "/export").body
    with monkeypatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
        for reply in (
            client.memory("GET", "kept", "/export"),
            client.memory("PUT", "kept", body=file),
        ):
            assert reply.status == 500 and reply.code == "not_saved"
    assert client.memory("PUT", "kept", body=file).status == 200
