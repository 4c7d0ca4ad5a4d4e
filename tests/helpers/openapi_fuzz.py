"""Schemathesis against a server in a process of its own: ``--requests 10000``.

It wants ``pip install schemathesis``. What the server answers has to be what ``/openapi.json`` says
that it may; afterwards it still has to answer, and to sample. Half of the names in requests are of
things that are there.
"""

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

from serving import Client, server

LIMITS = {"max_tokens": 2, "max_tokens_limit": 16, "max_prompt_tokens": 300, "request_timeout": 5}
CHECKS = (
    "not_a_server_error,status_code_conformance,content_type_conformance,"
    "response_schema_conformance"
)


def count(client: Client) -> int:
    """How many requests the server has answered."""
    text = client.request("GET", "/metrics").body.decode()
    return sum(map(int, re.findall(r"^deltamem_requests_total\{.*\} (\d+)", text, re.M)))


def named(part: object, known: list[str]) -> object:
    """A part of the description whose names of things are often among those that are known."""
    if isinstance(part, list):
        return [named(item, known) for item in part]
    if not isinstance(part, dict):
        return part
    part = {name: named(value, known) for name, value in part.items()}
    if part.get("in") == "path":
        part["schema"] = {"anyOf": [{"enum": known}, part["schema"]]}
    for name in part.keys() & {"model", "session", "conversation", "previous_response_id", "to"}:
        names = ["default_model"] if name == "model" else known
        if isinstance(part[name], dict):
            part[name] = {"anyOf": [{"enum": names}, part[name]]}
    return part


def made(client: Client) -> list[str]:
    """Names of a memory, a conversation, a response and the model, which are there now."""
    client.chat("anna lives in oslo .", "me")
    conversation = client.request("POST", "/v1/conversations", {}).json["id"]
    body = {"input": "anna lives in oslo ."}
    response = client.request("POST", "/v1/responses", body).json["id"]
    asked = {"input": "hi", "conversation": conversation}
    item = client.request("POST", "/v1/responses", asked).json["output"][0]["id"]
    return ["me", "other", conversation, response, item, "default_model"]


def main() -> None:
    """Ends with status 1 if the server said anything that it does not document."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    wanted = parser.parse_args()
    limits = [f"--{name.replace('_', '-')}={value}" for name, value in LIMITS.items()]
    with tempfile.TemporaryDirectory() as folder:
        log, memories = Path(folder) / "log", Path(folder) / "memories"
        with server("--memory-dir", memories, *limits, log=log) as (process, url):
            client, seed, codes = Client(url), wanted.seed, []
            told = client.request("GET", "/openapi.json").json
            operations = sum(map(len, told["paths"].values()))
            description = Path(folder) / "openapi.json"
            while (done := count(client)) < wanted.requests:
                most = max(1, min(40, (wanted.requests - done) // operations))
                description.write_text(json.dumps(named(told, made(client))))
                command = [
                    str(Path(sys.executable).with_name("schemathesis")), "run",
                    str(description), "--url", url, "--checks", CHECKS, "--phases", "fuzzing",
                    "--mode", "all", "--max-examples", str(most), "--seed", str(seed),
                    "--continue-on-failure", "--workers", "1", "--no-color",
                    "--suppress-health-check", "all", "--request-timeout", "60",
                ]  # fmt: skip
                codes.append(subprocess.run(command, check=False, cwd=folder).returncode)
                print(f"{count(client)} requests by now")
                if codes[-1]:
                    break
                seed += 1
            said = client.chat("where does anna live ?", temperature=1.0, max_tokens=4)
            assert process.poll() is None and said.status == 200, said
            print(f"{count(client)} requests; the server is alive and samples")
    sys.exit(any(codes))


if __name__ == "__main__":
    main()
