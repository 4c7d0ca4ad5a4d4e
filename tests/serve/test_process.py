"""`deltamem-mlx serve` as a process: OpenAI's own client, signals, and being killed."""

import http.client
import random
import signal
import socket
import threading
import time
from pathlib import Path

import openai
import pytest
from forked import Nursery
from serving import Client, server

from deltamem_mlx.memory.file import read_memory

FACT, QUESTION = "anna lives in oslo .", "where does anna live ?"


def test_openais_client_works_unmodified(tmp_path: Path) -> None:
    with server(log=tmp_path / "log") as (_, url):
        client = openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0)
        (model,) = client.models.list().data
        asked = {"model": model.id, "max_tokens": 24}
        me = {"extra_headers": {"X-Delta-Mem-Session": "me"}}
        told = client.chat.completions.create(
            messages=[{"role": "user", "content": FACT}], **asked, **me
        )
        assert told.usage.memory["tokens_written"] > 0
        question = [{"role": "user", "content": QUESTION}]
        chunks = list(
            client.chat.completions.create(
                messages=question,
                stream=True,
                stream_options={"include_usage": True},
                extra_body={"memory": {"context": "drop"}},
                **asked,
                **me,
            )
        )
        said = [chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices]
        assert "oslo" in "".join(said) and len(said) > 3
        assert chunks[-1].usage.memory["turns"] == 2
        with_tools = client.chat.completions.create(
            messages=question,
            tools=[{"type": "function", "function": {"name": "look", "parameters": {}}}],
            **asked,
        )
        assert "do not know" in with_tools.choices[0].message.content
        text = client.completions.create(model=model.id, prompt="anna lives", max_tokens=3)
        assert text.choices[0].text
        with pytest.raises(openai.NotFoundError):
            client.chat.completions.create(model="other", messages=question)
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(messages=question, **asked | {"max_tokens": 0})


def talk(client: Client, key: str, complete: dict[str, int]) -> None:
    """Goes on until the server is gone, noting which turn was the last to be answered."""
    try:
        while True:
            complete[key] = client.chat("ben is a doctor .", key).memory["turns"]
    except (OSError, ValueError, KeyError, http.client.HTTPException):
        return


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_it_has_lost_no_turn_that_was_complete(
    tmp_path: Path, seed: int
) -> None:
    """Again and again with the same memories, with and without a moment to write."""
    moments, folder, log = random.Random(seed), tmp_path / "memories", tmp_path / "log"
    complete = dict.fromkeys("abcd", 0)
    for round in range(4):
        with server("--memory-dir", folder, log=log) as (process, url):
            client = Client(url)
            for key, turns in complete.items():
                if round == 0:
                    complete[key] = client.chat(FACT, key).memory["turns"]
                    continue
                assert client.memory("GET", key).json["turns"] in (turns, turns + 1)
                asked = client.chat(QUESTION, key, memory={"context": "drop"})
                assert "oslo" in asked.text
                complete[key] = asked.memory["turns"]
            threads = [threading.Thread(target=talk, args=(client, k, complete)) for k in complete]
            for thread in threads:
                thread.start()
            time.sleep(moments.uniform(0.0, 1.5))
            process.send_signal(signal.SIGKILL)
            for thread in threads:
                thread.join()
        files = [path for path in folder.iterdir() if not path.name.startswith(".")]
        assert len(files) == len(complete) and all(read_memory(path) for path in files)
    assert sum(complete.values()) > 2 * len(complete)
    with server("--memory-dir", folder, log=log) as (process, url):
        client = Client(url)
        for key, turns in complete.items():
            assert client.memory("GET", key).json["turns"] in (turns, turns + 1)
            assert "oslo" in client.chat(QUESTION, key, memory={"context": "drop"}).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(300) == 0 and process.stdout.read() == ""
    assert "Traceback" not in log.read_text() and "anna" not in log.read_text()


def test_what_others_could_reach_needs_a_key(call_cli) -> None:
    refused = call_cli("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2 and "--api-key" in refused.stderr
    taken = call_cli("serve", "--model", "somewhere")
    assert taken.returncode == 2 and "--adapter" in taken.stderr


def test_addresses_that_cannot_be_had_are_named(call_cli) -> None:
    nowhere = call_cli("serve", "--host", "")
    assert nowhere.returncode == 2 and nowhere.stderr.startswith(
        "Error: --host '': expected a name"
    )
    key = call_cli("serve", "--api-key", " ")
    assert key.returncode == 2 and "--api-key: expected text" in key.stderr
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        refused = call_cli("serve", "--port", str(port))
    assert refused.returncode == 1 and f"--port {port}: another program" in refused.stderr
    assert refused.stderr.splitlines()[-1].startswith("Error: ") and not refused.stdout


def test_defaults_that_no_request_could_be_answered_with_are_refused(call_cli) -> None:
    for given in (["--temp", "nan"], ["--top-k", "342"], ["--max-tokens-limit", "0"]):
        refused = call_cli("serve", "--port", "0", "--temp", "1", *given)
        assert refused.returncode == 2 and given[0] in refused.stderr
        assert "Traceback" not in refused.stderr


def test_a_server_whose_model_thread_ends_ends_with_an_error(nursery: Nursery) -> None:
    """A supervisor starts it again; one that answers 503 for ever would be left alone."""
    broken = """
import sys
from deltamem_mlx.cli.main import main
from deltamem_mlx.serve.batching.batch import RunningBatch

def broken(self, *args):
    raise SystemError("a bug in the loop")

RunningBatch.__init__ = broken
sys.argv = ["deltamem-mlx", "serve", "--port", "0"]
main()
"""
    with nursery.piped("-c", broken) as process:
        assert process.stdout.readline().startswith("http://")
        _, said = process.communicate(300)
        assert process.wait() == 1
    assert "SystemError" in said and said.splitlines()[-1].startswith("Error: ")
    assert "Traceback" not in said
