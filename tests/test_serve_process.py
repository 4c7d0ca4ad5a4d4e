"""`deltamem-mlx serve` as a process: OpenAI's own client, signals, and being killed."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from conftest import ROOT
from serving import Client

from deltamem_mlx.memory_file import read_memory

FACT, QUESTION = "anna lives in oslo .", "where does anna live ?"


@contextmanager
def server(*args: str | Path) -> Iterator[tuple[subprocess.Popen, str]]:
    """A server in a process of its own, and its address."""
    process = subprocess.Popen(
        [sys.executable, "-m", "deltamem_mlx", "serve", "--port", "0", *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process, process.stdout.readline().strip()
    finally:
        process.kill()
        process.communicate()


def test_openais_client_works_unmodified() -> None:
    openai = pytest.importorskip("openai")
    with server() as (_, url):
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


@pytest.mark.slow
def test_killed_at_any_moment_it_has_lost_no_turn_that_was_complete(tmp_path: Path) -> None:
    complete = dict.fromkeys("abcd", 0)

    def talk(client: Client, key: str) -> None:
        try:
            while True:
                complete[key] = client.chat("ben is a doctor .", key).memory["turns"]
        except (OSError, ValueError, KeyError):
            return  # it was killed

    with server("--memory-dir", tmp_path) as (process, url):
        client = Client(url)
        for key in complete:
            client.chat(FACT, key)
        threads = [threading.Thread(target=talk, args=(client, key)) for key in complete]
        for thread in threads:
            thread.start()
        time.sleep(1.0)
        process.send_signal(signal.SIGKILL)
        for thread in threads:
            thread.join()
    assert min(complete.values()) > 1
    files = [path for path in tmp_path.iterdir() if not path.name.startswith(".")]
    assert len(files) == len(complete) and all(read_memory(path) for path in files)
    with server("--memory-dir", tmp_path) as (process, url):
        client = Client(url)
        for key, turns in complete.items():
            assert client.memory("GET", key).json["turns"] in (turns, turns + 1)
            assert "oslo" in client.chat(QUESTION, key).text
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
        stdout, stderr = process.communicate()
        assert stdout == "" and "Traceback" not in stderr and "anna" not in stderr


def test_what_others_could_reach_needs_a_key(run_cli) -> None:
    refused = run_cli("serve", "--host", "0.0.0.0", "--port", "0")
    assert refused.returncode == 2 and "--api-key" in refused.stderr
    taken = run_cli("serve", "--model", "somewhere")
    assert taken.returncode == 2 and "--adapter" in taken.stderr
