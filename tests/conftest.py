"""What every test has: exact float32, no way to the network, and tiny models to load."""

import os

# Before anything imports mlx or huggingface_hub: both read these once.
os.environ["MLX_ENABLE_TF32"] = "0"
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from forked import COMMAND, Nursery
from hub_server import HubServer
from hypothesis import HealthCheck, settings

if TYPE_CHECKING:
    from serving import Client, Pair

ROOT = Path(__file__).parent.parent
FIXTURES = Path(__file__).parent / "fixtures"
MODELS = Path(os.environ.get("DELTAMEM_MODELS", ROOT / ".models"))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--only-skips",
        metavar="FILE",
        help="Fail where a test is skipped for a reason that begins with no line of this file.",
    )


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    file = session.config.getoption("--only-skips")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if file is None or reporter is None:  # none in the processes of pytest-xdist
        return
    allowed = tuple(line for line in Path(file).read_text().splitlines() if line)
    for report in reporter.stats.get("skipped", []):
        reason = report.longrepr[2].removeprefix("Skipped: ")
        if not reason.startswith(allowed):
            reporter.write_line(f"{report.nodeid} was skipped: {reason}", red=True)
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_configure(config: pytest.Config) -> None:
    """What property tests draw: the same each time, but for `make test-slow`, which looks further.

    A rare draw is for whoever looks for one; it is not to stop a release by chance.
    """
    # How long it takes to draw and to try says nothing: machines are slow or busy.
    slow = {"deadline": None, "suppress_health_check": [HealthCheck.too_slow]}
    settings.register_profile("anew", derandomize=False, **slow)
    settings.register_profile("the same", derandomize=True, database=None, **slow)
    anew = config.option.markexpr == "slow"
    settings.load_profile("anew" if anew else "the same")


RunCli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(autouse=True)
def progress_bars(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command that ran in this process with --quiet does not silence later ones."""
    monkeypatch.delenv("HF_HUB_DISABLE_PROGRESS_BARS", raising=False)


@pytest.fixture(autouse=True, scope="module")
def unfused(request: pytest.FixtureRequest) -> Iterator[None]:
    """Kernels that mx.compile fuses are for files marked so: on Linux each that is new takes a C++
    compiler a second, and there are hundreds."""
    if request.node.get_closest_marker("fused"):
        yield
        return
    import mlx.core as mx

    mx.disable_compile()
    yield
    mx.enable_compile()


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders that are not there, a new one each time."""
    folder = tmp_path_factory.mktemp("places")
    return (folder / str(number) for number in count())


@pytest.fixture(autouse=True)
def own_places(monkeypatch: pytest.MonkeyPatch, places: Iterator[Path]) -> None:
    """No test reads or writes the memories and defaults of whoever runs it."""
    own = next(places)
    for name in ("DATA", "CONFIG", "STATE"):
        monkeypatch.setenv(f"XDG_{name}_HOME", str(own / name.lower()))
    for name in ("MODEL", "ADAPTER", "MEMORY"):
        monkeypatch.delenv(f"DELTAMEM_{name}", raising=False)


@pytest.fixture
def hub() -> Iterator[HubServer]:
    """A Hub of one's own on 127.0.0.1."""
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def nursery() -> Iterator[Nursery]:
    """Where processes come from that need not import everything again."""
    nursery = Nursery()
    yield nursery
    nursery.close()


@pytest.fixture
def run_cli(tmp_path: Path, nursery: Nursery) -> RunCli:
    """Runs `deltamem-mlx` with these arguments in a process of its own.

    `env` adds environment variables, `input` is the standard input, `cwd` defaults to tmp_path.
    """

    def run(
        *args: str | Path,
        env: dict[str, str] | None = None,
        input: str = "",
        cwd: Path = tmp_path,
        timeout: float = 300,
    ) -> subprocess.CompletedProcess[str]:
        environment = os.environ | {"PYTHONPATH": str(ROOT), "COLUMNS": "100"} | (env or {})
        with ExitStack() as stack:
            given, *said = (stack.enter_context(tempfile.TemporaryFile()) for _ in range(3))
            given.write(input.encode())
            given.seek(0)
            files = given.fileno(), said[0].fileno(), said[1].fileno()
            words = [*COMMAND, *map(str, args)]
            process = nursery.start(words, env=environment, cwd=cwd, files=files)
            try:
                code = process.wait(timeout)
            except BaseException:
                process.kill()
                raise
            texts = [(stream.seek(0), stream.read().decode())[1] for stream in said]
            return subprocess.CompletedProcess(words, code, *texts)

    return run


@pytest.fixture
def call_cli() -> RunCli:
    """Runs `deltamem-mlx` with these arguments in this process, which is quicker."""
    from typer.testing import CliRunner

    from deltamem_mlx.cli.main import app

    def call(*args: str | Path, input: str = "") -> subprocess.CompletedProcess[str]:
        words = [*map(str, args)]
        done = CliRunner().invoke(app, words, input=input)
        assert not isinstance(done.exception, Exception), done.exception
        return subprocess.CompletedProcess(words, done.exit_code, done.stdout, done.stderr)

    return call


def _loadable(name: str, factory: pytest.TempPathFactory) -> Path:
    from tiny import with_tokenizer

    folder = factory.mktemp("models") / name
    shutil.copytree(FIXTURES / "models" / name, folder)
    return with_tokenizer(folder)


@pytest.fixture(scope="session")
def qwen3_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `mlx_lm.load`: the qwen3-tiny fixture with the char96 tokenizer. Read only."""
    return _loadable("qwen3-tiny", tmp_path_factory)


@pytest.fixture(scope="session")
def smollm3_tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for `mlx_lm.load`: the smollm3-tiny fixture with the char96 tokenizer. Read only."""
    return _loadable("smollm3-tiny", tmp_path_factory)


@pytest.fixture(scope="session", params=["q4", "float32"])
def smollm2(request: pytest.FixtureRequest) -> Path:
    """The folder of a real model, for tests marked real_model: they run once for each form."""
    folder = MODELS / f"smollm2-{request.param}"
    if not (folder / "config.json").is_file():
        pytest.fail(f"{folder} is not there; `make test-real` writes it", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def gemma3() -> Path:
    """The folder of a real model with sliding windows, for tests marked real_model."""
    folder = MODELS / "gemma3-float32"
    if not (folder / "config.json").is_file():
        pytest.fail(f"{folder} is not there; `make test-real` writes it", pytrace=False)
    return folder


@pytest.fixture(scope="session")
def pair() -> "Pair":
    """The built-in pair, as a server has it; whoever changes it puts it back."""
    from serving import builtin_pair

    return builtin_pair()


@pytest.fixture(scope="module")
def client(pair: "Pair") -> Iterator["Client"]:
    """A server in this process, with usual settings."""
    from serving import Client

    from deltamem_mlx.serve.server import Server
    from deltamem_mlx.serve.settings import ServeSettings

    with Server(*pair, "builtin", ServeSettings(port=0)) as serving:
        yield Client(serving.url)
