"""`deltamem-mlx upload`: what goes up, what never does, and what is said when it cannot.

What talks to a Hub runs in a process of its own, with the real huggingface_hub and a server on
127.0.0.1. The rest runs in this one, which is offline: a dry run asks nobody.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest
import yaml
from conftest import FIXTURES, ROOT, RunCli
from golden import GOLDEN
from hub_server import HubServer
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.adapters.files import read_adapter
from deltamem_mlx.adapters.publish import prepare
from deltamem_mlx.adapters.publish_errors import said
from deltamem_mlx.cli.main import app

CONFIG, WEIGHTS = "adapter_config.json", "adapters.safetensors"

# Loads an adapter of the Hub onto a model and saves what it got.
LOAD = """
import sys
import deltamem_mlx as dm
model, _ = dm.load(sys.argv[1])
dm.save_adapter(dm.load_adapter(model, sys.argv[2]), sys.argv[3])
"""

# Uploads each [folder, repository, token, options] and prints what came of it, a line each.
SEND = """
import json, os, sys
from deltamem_mlx.adapters.publish import prepare, send
for folder, repo, token, options in json.loads(sys.argv[1]):
    os.environ["HF_TOKEN"] = token
    try:
        sent = send(prepare(folder, repo, **options))
        print(json.dumps({"url": sent.url, "kept_card": sent.kept_card}))
    except Exception as error:
        print(json.dumps({"error": type(error).__name__, "text": str(error)}))
"""


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter in mlx-lm's form that names its base model, amid what a run leaves behind."""
    folder = tmp_path / "adapter"
    dm.convert_adapter(GOLDEN / "tsw_qo" / "adapter", folder)
    rebase(folder, "user/base")
    (folder / "training_state").mkdir()
    (folder / "training_state" / "state.safetensors").write_bytes(b"optimizer")
    for name in ("0000100_adapters.safetensors", "state.safetensors", "me.safetensors"):
        (folder / name).write_bytes(b"not for others")
    for name in ("metrics.jsonl", "loss.png", ".env", ".hidden.json", "notes.txt", "LICENSE.bak"):
        (folder / name).write_text("not for others")
    return folder


def rebase(folder: Path, name: str) -> None:
    values = json.loads((folder / CONFIG).read_text())
    base = {"name": name, "model_type": "qwen3", "num_layers": 3, "hidden_size": 32}
    (folder / CONFIG).write_text(json.dumps(values | {"base_model": base}))


def call(*args: str | Path) -> Result:
    done = CliRunner().invoke(app, ["upload", *map(str, args)])
    assert not isinstance(done.exception, Exception), done.exception
    return done


def dry(folder: Path, *args: str | Path) -> dict:
    done = call(folder, "--repo", "user/mine", "--dry-run", "--json", *args)
    assert done.exit_code == 0, done.output
    return json.loads(done.stdout)


def front_matter(card: str) -> dict:
    start, head, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(head)


def tensors(path: Path) -> dict[str, np.ndarray]:
    return {name: np.array(tensor) for name, tensor in dict(mx.load(str(path))).items()}


def python(code: str, *args: str | Path, env: dict[str, str]) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-c", code, *map(str, args)],
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def sent(hub: HubServer, home: Path, *uploads: list) -> list[dict]:
    """What came of each (folder, repository, token, options)."""
    return python(SEND, json.dumps(uploads, default=str), env=hub.env(home))


# --- with a Hub


def test_what_went_up_loads_as_it_was(
    run_cli: RunCli, hub: HubServer, adapter: Path, qwen3_tiny: Path, tmp_path: Path
) -> None:
    hub.tokens["hf_mine"] = "user"
    env = hub.env(tmp_path / "home", token="hf_mine")
    done = run_cli("upload", adapter, "--repo", "user/mine", "--message", "First one", env=env)
    assert (done.returncode, done.stdout) == (0, f"{hub.endpoint}/user/mine\n"), done.stderr
    served = hub.repos["models", "user/mine"].folders["main"]
    assert {path.name for path in served.rglob("*")} == {CONFIG, WEIGHTS, "README.md"}
    assert (served / CONFIG).read_bytes() == (adapter / CONFIG).read_bytes()
    assert front_matter((served / "README.md").read_text())["base_model"] == "user/base"
    assert hub.messages == ["First one"]
    assert not hub.repos["models", "user/mine"].private

    python(LOAD, qwen3_tiny, "user/mine", tmp_path / "back", env=env)
    before, after = tensors(adapter / WEIGHTS), tensors(tmp_path / "back" / WEIGHTS)
    assert before.keys() == after.keys()
    assert all(np.array_equal(after[name], before[name]) for name in before)
    config = dm.DeltaMemConfig.from_pretrained
    assert config(tmp_path / "back") == config(adapter)


def test_private_repositories_branches_and_cards(
    hub: HubServer, adapter: Path, tmp_path: Path
) -> None:
    hub.tokens["hf_mine"] = "user"
    with_card, edited = tmp_path / "with_card", tmp_path / "edited"
    shutil.copytree(adapter, with_card)
    (with_card / "README.md").write_text("---\nlicense: mit\n---\nmine\n")
    edited.mkdir()
    (edited / "README.md").write_text("edited on the Hub")
    hub.add("user/c", edited)
    again = {"branch": "v2", "private": True, "message": "Again"}
    made, branched, public, private, own = sent(
        hub,
        tmp_path / "home",
        [adapter, "user/a", "hf_mine", {"private": True}],
        [adapter, "user/a", "hf_mine", again],
        [adapter, "user/b", "hf_mine", {}],
        [adapter, "user/b", "hf_mine", {"private": True}],
        [with_card, "user/c", "hf_mine", {}],
    )
    assert made == {"url": f"{hub.endpoint}/user/a", "kept_card": False}
    assert hub.repos["models", "user/a"].private
    assert branched == {"url": f"{hub.endpoint}/user/a/tree/v2", "kept_card": True}
    assert set(hub.repos["models", "user/a"].folders) == {"main", "v2"}
    assert public["url"] == f"{hub.endpoint}/user/b"
    assert private["error"] == "PermissionError"
    assert "public: nothing was uploaded" in private["text"]
    assert own == {"url": f"{hub.endpoint}/user/c", "kept_card": False}
    served = hub.repos["models", "user/c"].folders["main"]
    assert (served / "README.md").read_text() == (with_card / "README.md").read_text()
    first = "Upload δ-mem adapter"
    assert hub.messages == [first, "Again", first, first]


def test_a_card_of_the_repository_is_not_replaced_by_a_generated_one(
    run_cli: RunCli, hub: HubServer, adapter: Path, tmp_path: Path
) -> None:
    hub.tokens["hf_mine"] = "user"
    there = tmp_path / "there"
    there.mkdir()
    (there / "README.md").write_text("edited on the Hub")
    hub.add("user/mine", there)
    env = hub.env(tmp_path / "home", token="hf_mine")
    done = run_cli("upload", adapter, "--repo", "user/mine", env=env)
    assert done.returncode == 0
    assert "stays as it is" in done.stderr
    served = hub.repos["models", "user/mine"].folders["main"]
    assert (served / "README.md").read_text() == "edited on the Hub"
    assert (served / WEIGHTS).is_file()


def test_refusals_are_one_sentence_and_change_nothing(
    hub: HubServer, adapter: Path, tmp_path: Path
) -> None:
    hub.tokens["hf_mine"] = "user"
    hub.add("user/other", GOLDEN / "tsw_qo" / "adapter")
    for name in ("boss/theirs", "user/plain"):
        hub.add(name, FIXTURES / "models" / "qwen3-tiny")
    bad = tmp_path / "bad"
    shutil.copytree(adapter, bad)
    (bad / "README.md").write_text("---\n{: [\n---\n")
    before = {name: dict(repo.folders) for name, repo in hub.repos.items()}
    nobody, wrong, new, theirs, mixed, card = sent(
        hub,
        tmp_path / "home",
        [adapter, "user/mine", "", {}],
        [adapter, "user/mine", "hf_wrong", {}],
        [adapter, "boss/mine", "hf_mine", {}],
        [adapter, "boss/theirs", "hf_mine", {}],
        [adapter, "user/other", "hf_mine", {}],
        [bad, "user/plain", "hf_mine", {}],
    )
    for found in (nobody, wrong):
        assert found["error"] == "PermissionError"
        assert "hf auth login" in found["text"]
    assert "Nobody is logged in" in nobody["text"]
    assert "wrong or has expired" in wrong["text"]
    for found, repo in ((new, "boss/mine"), (theirs, "boss/theirs")):
        assert found["error"] == "PermissionError"
        assert f"may not write to '{repo}'" in found["text"]
    assert mixed["error"] == "ValueError"
    assert "another form" in mixed["text"] and "delta_mem_config.json" in mixed["text"]
    assert card["error"] == "ValueError"
    assert "Invalid metadata in README.md" in card["text"]
    for found in (nobody, wrong, new, theirs, mixed):
        assert "\n" not in found["text"]
    assert {name: dict(repo.folders) for name, repo in hub.repos.items()} == before
    assert hub.messages == []


def test_a_hub_that_does_not_answer(
    run_cli: RunCli, hub: HubServer, adapter: Path, tmp_path: Path
) -> None:
    env = hub.env(tmp_path / "home", token="hf_mine")
    hub.fail_with = 503
    for change, expected in (
        ({}, "Try again later."),
        ({"HF_ENDPOINT": "http://127.0.0.1:9"}, "http://127.0.0.1:9 could not be reached"),
    ):
        done = run_cli("upload", adapter, "--repo", "user/mine", "--quiet", env=env | change)
        assert (done.returncode, done.stdout) == (1, "")
        assert done.stderr.startswith("Error: ") and expected in done.stderr
        assert len(done.stderr.splitlines()) == 1, done.stderr


def test_a_file_that_could_not_be_sent_is_the_networks_fault() -> None:
    """huggingface_hub wraps what happens while it sends a large file."""
    dropped = type("WriteError", (Exception,), {"__module__": "httpx"})("broken pipe")
    wrapped = RuntimeError("Error while uploading 'adapters.safetensors' to the Hub.")
    wrapped.__cause__ = dropped
    found = said(wrapped, "user/mine")
    assert isinstance(found, ConnectionError) and "broken pipe" in str(found)
    other = RuntimeError("something else")
    assert said(other, "user/mine") is other


# --- without one


def test_offline(adapter: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_mine")
    done = call(adapter, "--repo", "user/mine")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr == "Error: HF_HUB_OFFLINE is set. Unset it to upload.\n"


def test_a_dry_run_shows_all_and_touches_nothing(adapter: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in adapter.rglob("*")}
    done = call(adapter, "--repo", "user/mine", "--dry-run", "--revision", "v2")
    assert (done.exit_code, done.stderr) == (0, "")
    head, _, card = done.stdout.partition("\n\n")
    assert "user/mine" in head and "branch v2" in head and "Upload δ-mem adapter" in head
    lines = head.splitlines()
    for name in (CONFIG, WEIGHTS):
        [line] = [line for line in lines if line.split()[:1] == [name]]
        assert f"{(adapter / name).stat().st_size:,} bytes" in line
    [total] = [line for line in lines if line.startswith("Files: ")]
    size = sum((adapter / name).stat().st_size for name in (CONFIG, WEIGHTS)) + len(card.encode())
    assert total == f"Files: {size:,} bytes"
    assert "generated" in lines[-1]
    assert card.startswith("---\nbase_model: user/base\n")
    assert {path: path.stat().st_mtime_ns for path in adapter.rglob("*")} == before


def test_the_generated_card(adapter: Path) -> None:
    card = dry(adapter, "--license", "apache-2.0", "--branch", "v2")["card"]
    assert front_matter(card) == {
        "base_model": "user/base",
        "base_model_relation": "adapter",
        "license": "apache-2.0",
        "library_name": "mlx",
        "pipeline_tag": "text-generation",
        "tags": ["delta-mem", "mlx", "mlx-lm"],
    }
    files = read_adapter(adapter)
    parameters = sum(x.size for x in files.tensors.values())
    states = 3 * files.config.num_state_heads * files.config.rank**2 * 4
    assert f"| parameters | {parameters:,} |" in card
    assert f"| memory of a conversation | {states:,} bytes |" in card
    assert f"`{WEIGHTS}` ({(adapter / WEIGHTS).stat().st_size:,} bytes)" in card
    assert f"| `rank` | `{files.config.rank}` |" in card
    assert "--model user/base --adapter user/mine@v2" in card
    assert 'dm.load("user/base", "user/mine@v2")' in card
    script = card.split("```python\n")[1].split("```")[0]
    compile(script, "card", "exec")
    assert "license" not in front_matter(dry(adapter)["card"])
    rebase(adapter, "user/base@v1")
    at = dry(adapter)["card"]
    assert front_matter(at)["base_model"] == "user/base"
    assert 'dm.load("user/base@v1", "user/mine")' in at


def test_a_base_model_that_is_a_folder_goes_up_by_its_last_name(
    adapter: Path, qwen3_tiny: Path
) -> None:
    rebase(adapter, str(qwen3_tiny))
    done = call(adapter, "--repo", "user/mine", "--dry-run")
    assert str(qwen3_tiny.parent) not in done.stdout
    assert "base_model:" not in done.stdout
    assert "`qwen3-tiny`" in done.stdout
    assert "--base-model" in done.stderr
    sizes = dry(adapter)["files"]
    assert sizes[CONFIG] != (adapter / CONFIG).stat().st_size, "the path is not uploaded either"

    named = prepare(adapter, "user/mine", base_model="user/base")
    assert named.hidden_base is None
    config = json.loads(named.files[CONFIG])
    assert config["base_model"]["name"] == "user/base"
    local = json.loads((adapter / CONFIG).read_text())
    assert config | {"base_model": local["base_model"]} == local
    assert front_matter(named.card)["base_model"] == "user/base"


def test_every_form_goes_up_whole() -> None:
    published = GOLDEN / "msw_heads4" / "adapter"
    found = dry(published, "--base-model", "user/base")
    assert set(found["files"]) == {
        "delta_mem_config.json",
        "delta_mem_adapter_mlx.npz",
        "README.md",
    }
    assert front_matter(found["card"])["base_model"] == "user/base"
    assert "4 × 8×8 float32" in found["card"]
    builtin = dry(ROOT / "adapters" / "builtin")
    assert builtin["card"] == (ROOT / "adapters" / "builtin" / "README.md").read_text()


def _rank(folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text())
    values["delta_mem"]["rank"] = 4
    (folder / CONFIG).write_text(json.dumps(values))


def _hidden_size(folder: Path) -> None:
    values = json.loads((folder / CONFIG).read_text())
    values["base_model"]["hidden_size"] = 64
    (folder / CONFIG).write_text(json.dumps(values))


def _without(name: str) -> Callable[[Path], None]:
    return lambda folder: _change(folder, {name: None})


def _with(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda folder: _change(folder, {name: mx.zeros(shape)})


def _change(folder: Path, change: dict[str, mx.array | None]) -> None:
    values = dict(mx.load(str(folder / WEIGHTS))) | change
    mx.save_safetensors(str(folder / WEIGHTS), {n: x for n, x in values.items() if x is not None})
    settings = json.loads((folder / CONFIG).read_text())
    settings.pop("weights_sha256", None)  # it was of the weights before
    (folder / CONFIG).write_text(json.dumps(settings))


LAYER = "model.layers.1.self_attn."


@pytest.mark.parametrize(
    ("damage", "expected"),
    [
        (lambda folder: (folder / CONFIG).unlink(), "neither"),
        (lambda folder: (folder / WEIGHTS).unlink(), "no weights"),
        (lambda folder: (folder / CONFIG).write_text('{"fine_tune_type": "lora"}'), "'lora'"),
        (lambda folder: (folder / WEIGHTS).write_bytes(b"cut"), "cannot be read"),
        (_with(f"{LAYER}beta_bias", 7), f"{LAYER}beta_bias: [7], expected [8]"),
        (_with(f"{LAYER}delta_q_proj", 64, 4), f"{LAYER}delta_q_proj: [64, 4], expected [64, 8]"),
        (_with(f"{LAYER}memory_k_proj", 8, 31), "[8, 31], expected [8, 32]"),
        (_without(f"{LAYER}memory_v_proj"), f"{LAYER}memory_v_proj: missing"),
        (_without(f"{LAYER}delta_o_proj"), f"{LAYER}delta_o_proj: missing"),
        (_with(f"{LAYER}surprise", 8), f"{LAYER}surprise: not used"),
        (_with("lm_head.weight", 8), "lm_head.weight: expected names like"),
        (_rank, "expected [4, 32]"),
        (_hidden_size, "expected [8, 64]"),
    ],
)
def test_what_is_no_whole_adapter_is_not_sent(
    damage: Callable[[Path], None], expected: str, adapter: Path
) -> None:
    damage(adapter)
    done = call(adapter, "--repo", "user/mine", "--dry-run")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("Error: ") and expected in done.stderr


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "--repo"),
        (["--repo", "mine"], "--repo: 'mine' is no repository name; expected USER/NAME"),
        (["--repo", "a/b/c"], "expected USER/NAME"),
        (["--repo", "user/mine@v2"], "expected USER/NAME"),
        (["--repo", "user/my adapter"], "expected USER/NAME"),
        (["--repo", "user/a--b"], "--repo: 'user/a--b' is no repository name"),
        (["--repo", "user/mine", "--base-model", "./base"], "--base-model: './base'"),
        (["--repo", "user/mine", "--revision", ""], "--revision"),
        (["--repo", "user/mine", "--message", ""], "--message"),
    ],
)
def test_wrong_use(args: list[str], expected: str, adapter: Path) -> None:
    done = call(adapter, *args, "--dry-run")
    assert (done.exit_code, done.stdout) == (2, "")
    assert done.stderr.startswith("Error: ") and expected in done.stderr


def test_no_folder() -> None:
    for name in ("user/adapter", "nowhere"):
        done = call(name, "--repo", "user/mine", "--dry-run")
        assert done.exit_code == 1
        assert done.stderr == f"Error: No folder {name!r}. Expected the folder of an adapter.\n"


def test_the_adapter_for_a_real_model_in_this_repository_is_whole_and_small() -> None:
    upload = prepare(ROOT / "adapters" / "smollm2-135m-instruct", "user/name")
    assert sum(upload.sizes.values()) < 4_000_000
    assert upload.card_is_own and "base_model: HuggingFaceTB/SmolLM2-135M-Instruct" in upload.card
    assert upload.hidden_base is None, "named as on the Hub"
