"""Answers of a form from a server whose model lies in two processes."""

import json
from pathlib import Path

import jsonschema
import pytest
from byte_model import byte_pair
from launching import free_ports, started
from serving import Client, user

import deltamem_mlx as dm
from deltamem_mlx.serve.server import Server
from deltamem_mlx.serve.settings import ServeSettings

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "mood": {"enum": ["good", "schlecht", "так себе", None]},
        "told": {"type": "array", "items": {"type": "boolean"}, "minItems": 1, "maxItems": 3},
    },
    "required": ["name", "mood", "told"],
    "additionalProperties": False,
}
TOOL = {"type": "function", "function": {"name": "note", "parameters": SCHEMA}}


def answers(client: Client) -> list:
    """What a memory is asked in several forms, and what it says of itself."""
    form = {"type": "json_schema", "json_schema": {"name": "it", "strict": True, "schema": SCHEMA}}
    found = []
    for seed, temperature in enumerate((0.0, 1.0, 1.0)):
        asked = {"temperature": temperature, "seed": seed, "max_tokens": 400}
        reply = client.chat("Who?", "me", response_format=form, **asked)
        assert reply.status == 200, reply.body
        jsonschema.validate(json.loads(reply.text), SCHEMA)
        found.append((reply.text, reply.memory["total_tokens_written"]))
    call = client.chat("Note it.", "me", tools=[TOOL], tool_choice="required", max_tokens=400)
    (made,) = call.json["choices"][0]["message"]["tool_calls"]
    jsonschema.validate(json.loads(made["function"]["arguments"]), SCHEMA)
    drained = client.chat("On.", "me", response_format=form, max_tokens=3, temperature=0.0)
    refused = client.chat([user("x")], response_format={"type": "json_schema"})
    return [*found, made["function"], drained.text, refused.status]


@pytest.mark.slow
@pytest.mark.parametrize(("arch", "flags"), [("qwen3", []), ("qwen3_moe", ["--pipeline"])])
def test_two_processes_answer_in_a_form_as_one_does(
    arch: str, flags: list[str], tmp_path: Path
) -> None:
    pair = byte_pair(tmp_path / "model", arch)
    dm.save_adapter(pair[0], tmp_path / "adapter")
    with Server(*pair, "tiny", ServeSettings(port=0)) as serving:
        one = answers(Client(serving.url))
    port = free_ports(1)
    words = ["--model", tmp_path / "model", "--adapter", tmp_path / "adapter", *flags]
    with started("-m", "deltamem_mlx", "serve", "--port", str(port), *words) as program:
        assert program.stdout is not None
        assert program.stdout.readline().strip() == f"http://127.0.0.1:{port}"
        assert answers(Client(f"http://127.0.0.1:{port}")) == one
    assert one[-1] == 400
