"""`deltamem-mlx chat`: questions are answered, commands carried out, only you end it."""

import json
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from conftest import RunCli
from mlx_lm.generate import GenerationResponse
from typer.testing import CliRunner, Result

import deltamem_mlx as dm
from deltamem_mlx.cli.chat.commands import _spread
from deltamem_mlx.cli.chat.loop import Chat
from deltamem_mlx.cli.main import app
from deltamem_mlx.files.places import memory_path
from deltamem_mlx.memory.file import read_memory


@pytest.fixture(scope="module")
def adapter(qwen3_tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapters") / "tiny"
    model, _ = dm.load(str(qwen3_tiny))
    dm.attach(model, dm.DeltaMemConfig(output_init="random", online_gain=1.0), seed=1)
    dm.save_adapter(model, folder)
    return folder


@pytest.fixture
def flags(qwen3_tiny: Path, adapter: Path) -> list[str]:
    return ["chat", "--model", str(qwen3_tiny), "--adapter", str(adapter), "-m", "6"]


@pytest.fixture
def session(qwen3_tiny: Path, adapter: Path) -> dm.MemorySession:
    return dm.MemorySession(*dm.load(str(qwen3_tiny), str(adapter)))


def talk(flags: list[str], *lines: str, end: str = "q") -> Result:
    done = CliRunner().invoke(app, flags, input="\n".join([*lines, end]) + "\n")
    assert done.exit_code == 0, (done.stderr, done.exception)
    return done


def asked(session: dm.MemorySession, *questions: str) -> list[str]:
    return [session.ask(question, max_tokens=6) for question in questions]


def states(path: Path) -> dict[int, np.ndarray]:
    return read_memory(path).states


# --- talking


def test_answers_alone_on_stdout(flags: list[str], session: dm.MemorySession) -> None:
    done = talk([*flags, "--system-prompt", "Be [terse]."], "I am Al.", "", "Who?")
    told = dm.MemorySession(session.model, session.tokenizer, system_prompt="Be [terse].")
    assert done.stdout.splitlines() == asked(told, "I am Al.", "Who?")
    for part in ("Be [terse].", "q exit   r reset   h help", "6 tokens · ", "bye"):
        assert part in done.stderr, part


def test_quiet(flags: list[str], session: dm.MemorySession) -> None:
    done = talk([*flags, "--quiet"], "I am Al.")
    assert (done.stdout.splitlines(), done.stderr) == (asked(session, "I am Al."), "")


@pytest.mark.parametrize("end", ["q", "/exit"])
def test_ends_when_told(end: str, flags: list[str]) -> None:
    assert "bye" in talk(flags, "I am Al.", end=end).stderr


def test_ends_with_the_input(run_cli: RunCli, flags: list[str], session: dm.MemorySession) -> None:
    done = run_cli(*flags, input="I am Al.")
    assert (done.returncode, done.stdout.splitlines()) == (0, asked(session, "I am Al."))


def test_help_names_every_command(flags: list[str]) -> None:
    shown = talk(flags, "h").stderr
    chat = Chat(None, None, {}, {})
    for name in chat.commands.keys() - {"/help"}:
        assert name in shown, name
    assert "There is no /stat. Did you mean /stats? h" in talk(flags, "/stat").stderr


def test_errors_do_not_end_it(flags: list[str], session: dm.MemorySession, tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    lines = ["/load absent", "/remember absent", f"/remember {tmp_path / 'empty.txt'}", "/save"]
    lines += ["/save 'a", "/probe", "/compare", "/back", f"/save {tmp_path}", "I am Al."]
    done = talk(flags, *lines)
    assert done.stdout.splitlines() == asked(session, "I am Al.")
    for part in (
        "absent",
        "is empty",
        "/save NAME|PATH",
        "A quote is not closed",
        "/probe QUESTION",
        "no question",
        "no branch",
    ):
        assert part in done.stderr, part
    assert "Traceback" not in done.stderr
    assert "Traceback" in talk([*flags, "--debug"], "/back").stderr


def test_wrong_use(qwen3_tiny: Path) -> None:
    for more in ([], ["--adapter", "a", "--memory", "m.bin"]):
        done = CliRunner().invoke(app, ["chat", "--model", str(qwen3_tiny), *more])
        assert done.exit_code == 2
        assert done.stderr.startswith("Error: ")


# --- the memory


def test_memory_is_saved_after_every_answer(
    flags: list[str], session: dm.MemorySession, tmp_path: Path
) -> None:
    path = tmp_path / "me.safetensors"
    kept = tmp_path / "kept.safetensors"
    talk([*flags, "--memory", str(path)], "I am Al.", "I am Bo.")
    asked(session, "I am Al.", "I am Bo.")
    session.save(kept)
    for layer, state in states(path).items():
        assert np.array_equal(state, states(kept)[layer])
    done = talk([*flags, "--memory", str(path)], "Who?")
    assert "tokens written" in done.stderr
    session.forget_context()
    assert done.stdout.splitlines() == asked(session, "Who?")
    assert b"I am" not in path.read_bytes()


def test_read_only(flags: list[str], tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    talk([*flags, "--memory", str(path)], "I am Al.")
    before = path.read_bytes()
    talk([*flags, "--memory", str(path), "--read-only"], "I am Bo.", "Who?")
    assert path.read_bytes() == before


def test_remember_and_forget(flags: list[str], session: dm.MemorySession, tmp_path: Path) -> None:
    notes = tmp_path / "my notes.txt"
    notes.write_text("My cat is Miso.")
    plain, second = tmp_path / "it's.txt", tmp_path / "bob's.txt"
    plain.write_text("My dog is Rex.")
    second.write_text("I am Al.")
    lines = (f"/remember '{notes}'", f"/remember {plain}", f"/remember {plain} {second}")
    done = talk(flags, *lines, "/forget", "Who?")
    session.remember("My cat is Miso.")
    session.remember("My dog is Rex.")
    session.remember("My dog is Rex.")
    session.remember("I am Al.")
    session.forget_context()
    assert done.stdout.splitlines() == asked(session, "Who?")


@pytest.mark.parametrize("reset", ["r", "/reset"])
def test_reset(reset: str, flags: list[str], session: dm.MemorySession) -> None:
    done = talk(flags, "I am Al.", reset, "Who?")
    assert done.stdout.splitlines()[1:] == asked(session, "Who?")


def test_save_and_load(flags: list[str], session: dm.MemorySession, tmp_path: Path) -> None:
    file, text, folder = (tmp_path / name for name in ("m.safetensors", "t.safetensors", "all"))
    done = talk(
        flags,
        *("I am Al.", f"/save {file}", f"/save {text} --with-transcript", f"/save {folder}"),
        *("/reset", f"/load {folder}", "Who?", f"/load {file}", "Who?"),
    )
    first, second = asked(session, "I am Al.", "Who?")
    forgotten = dm.MemorySession.restore(file, session.model, session.tokenizer)
    assert done.stdout.splitlines() == [first, second, *asked(forgotten, "Who?")]
    assert b"I am Al." not in file.read_bytes()
    transcript = json.loads(read_memory(text).note)
    assert [message["content"] for message in transcript] == ["I am Al.", first]


def test_load_goes_on_in_what_it_loads_and_leaves_the_memory_as_it_was(
    flags: list[str], session: dm.MemorySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Turns are saved to what was loaded: a memory by its name, a file, a folder; and back."""
    mine, folder = tmp_path / "mine.safetensors", tmp_path / "all"
    talk([*flags, "--memory", "ben"], "I am Ben.")
    chat = [*flags, "--memory", str(mine)]
    talk(chat, "I am Al.", f"/save {folder}")
    ben, left = memory_path("ben"), mine.read_bytes()
    done = talk(chat, "/load ben", "Who?", "/undo", "So?", f"/save {mine}")
    assert "loaded ben: " in done.stderr
    assert f"saved to it from now on; {mine} stays as it was" in done.stderr
    assert "is there already, and was left as it is" in done.stderr
    assert mine.read_bytes() == left
    assert [len(read_memory(path).history) for path in (mine, ben)] == [1, 2]
    ours = ben.read_bytes()
    done = talk(chat, f"/load {folder}", "Who?", "/undo", "So?")
    assert f"loaded {folder}: " in done.stderr
    assert (mine.read_bytes(), ben.read_bytes()) == (left, ours)
    again = dm.MemorySession.restore(folder, session.model, session.tokenizer)
    assert [said["content"] for said in again.messages[::2]] == ["I am Al.", "So?"]
    talk(chat, "/load ben", f"/load {mine}", "Who?")
    assert ben.read_bytes() == ours
    assert len(read_memory(mine).history) == 2
    written = mine.read_bytes()
    reading = talk([*chat, "--read-only"], "/load ben", "Who?")
    assert "turns are not saved (--read-only)" in reading.stderr
    unsaved = talk(flags, f"/load {mine}", "Who?")
    assert "turns are not saved (no --memory)" in unsaved.stderr
    assert (mine.read_bytes(), ben.read_bytes()) == (written, ours)
    with monkeypatch.context() as here:
        here.chdir(folder.parent)  # a folder's path may look as a name does
        before = (folder / "session.json").read_bytes()
        unsaved = talk(flags, f"/load ./{folder.name}", "Who?")
        assert "turns are not saved (no --memory)" in unsaved.stderr
        assert (folder / "session.json").read_bytes() == before
    by_name = talk(flags, "/load ben", "Who?")
    assert "saved to it from now on" in by_name.stderr
    assert len(read_memory(ben).history) == 3
    assert mine.read_bytes() == written


def test_a_loaded_memory_that_another_program_changes_is_not_replaced(
    session: dm.MemorySession, tmp_path: Path
) -> None:
    mine, other = tmp_path / "mine.safetensors", tmp_path / "other.safetensors"
    for path in (mine, other):
        session.save(path, history=4)
    lines = [f"/load {other}", "changed", "I am Al.", "I am Al.", "q", f"/load {other}"]
    lines += [f"/load {other}", "I am Bo.", "q"]
    problems: list[str] = []
    warned: list[str] = []
    loaded: list[str] = []

    class Changing(_ScriptedUI):
        interactive = False

        def say(self, text: str, style: str = "strong") -> None:
            if style == "warn":
                warned.append(text)

        def ask(self) -> str:
            line = super().ask()
            if line == "changed":  # by another program
                there = dm.MemorySession.restore(other, session.model, session.tokenizer)
                there.remember("I am Cy.")
                there.save(other, history=4)
                return ""
            return line

        def answer_piece(self, text: str) -> None: ...
        def done(self, what: str, more: str = "") -> None:
            loaded.append(more)

        def problem(self, text: str) -> None:
            problems.append(text)

    settings = {"system_prompt": None}
    Chat(session, Changing(*lines), settings, {"max_tokens": 3}, mine).run()
    first, second = problems
    assert f"{other} has been saved by another program" in first
    assert f"/load {other} goes on from what is there now; /save NAME keeps" in first
    assert second.startswith(f"Not saved to {other} either: /load ")
    assert [line.rpartition(". ")[2] for line in warned] == [
        "/exit again does it.",
        f"/load {other} again does it.",
    ]
    assert loaded[-1].endswith(f"what was not saved to {other} is gone")
    assert len(read_memory(other).history) == 2
    assert sum(read_memory(mine).tokens_written) == 0


def test_a_chat_that_saves_after_each_turn_says_so_when_asked_to_save(flags: list[str]) -> None:
    said = talk([*flags, "--memory", "family"], "I am Al.", "/save").stderr
    assert "family is saved after each turn; /save NAME makes another" in said


def test_names_are_memories_to_save_and_load_and_a_path_is_what_it_says(
    flags: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    family = memory_path("family")
    assert "There are none yet" in talk(flags, "/memories").stderr
    saved = talk(flags, "I am Al.", "/save family", "/save ./all", "/memories", "/list")
    assert "saved the memory as family: /load family goes on in it" in saved.stderr
    assert saved.stderr.count("family   ") == 2
    assert family.is_file() and len(read_memory(family).history) == 1
    assert (tmp_path / "all" / "session.json").is_file() and not (tmp_path / "family").exists()
    before = {path: path.read_bytes() for path in (family, tmp_path / "all" / "session.json")}
    for path, name in ((family, "family"), (tmp_path / "all", "./all")):
        refused = talk(flags, "I am Bo.", f"/save {name}")
        assert f"{path.stem} is there already, and was left as it is" in refused.stderr
        assert f"/save {name} --overwrite" in refused.stderr
    assert {path: path.read_bytes() for path in before} == before
    missed = talk(flags, "/load famly", "/load all", "/load family")
    assert "No memory 'famly' in " in missed.stderr and "Did you mean family?" in missed.stderr
    assert "loaded all: " in missed.stderr and "loaded family: " in missed.stderr
    here = talk([*flags, "--memory", "family"], "/memories", "/save family")
    assert "this one" in here.stderr and "the folder here" not in here.stderr
    assert family.parent.stat().st_mode & 0o777 == 0o700


def test_an_answer_that_can_only_be_the_same_is_said_to_be_so(flags: list[str]) -> None:
    done = talk(flags, "I am Al.", "/retry", "/temp 5", "/retry", "/temp", "/temp x", "/temp -1")
    first, again, other = done.stdout.splitlines()
    assert first == again != other
    assert done.stderr.count("at temperature 0 there is one only; /temp 0.7") == 1
    assert done.stderr.count("temperature 5: answers vary") == 2
    assert done.stderr.count("expected a number from 0 on") == 2
    zero = talk(flags, "/temp -0")
    assert "temperature 0: always the likeliest answer" in zero.stderr


def test_retry_draws_anew(flags: list[str]) -> None:
    done = talk([*flags, "--seed", "1"], "/temp 3", "I am Al.", *["/retry"] * 4)
    assert len(set(done.stdout.splitlines())) > 3
    sure = talk([*flags, "--top-k", "1"], "/temp 3", "I am Al.", "/retry")
    assert "the same answer: drawn anew, it came out alike; /temp 3.5 lets it" in sure.stderr


def test_what_was_undone_is_put_back_and_saved(flags: list[str], tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    chat = [*flags, "--memory", str(path)]
    whole = talk(chat, "I am Al.", "I am Bo.", "/undo", "/undo", "/redo", "/redo", "/redo now")
    assert whole.stderr.count("more can be; /redo puts it back") == 2
    assert "put back 2 turns, " in whole.stderr
    assert whole.stderr.count("There is nothing to put back: what was taken back is kept") == 1
    assert "/redo takes nothing after it" in whole.stderr
    assert len(read_memory(path).history) == 2
    both = states(path)
    talk(chat, "/undo 2", "/undo 2", "/redo")
    assert all(np.array_equal(both[i], state) for i, state in states(path).items())
    over = talk(flags, "I am Al.", "/undo", "I am Bo.", "/redo", "/reset", "/undo", "/redo")
    assert over.stderr.count("There is nothing to put back") == 1
    assert "tokens come back; 1 more can be" in over.stderr and "tokens go" in over.stderr


@pytest.mark.parametrize("again", ["/retry", "/edit So?"])
def test_a_second_answer_that_fails_leaves_the_first(
    again: str, flags: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ("I am Al.", "I am Bo.", "/stats", "/probe Who?")
    kept = talk(flags, *lines)
    stream, left = dm.MemorySession.stream, [1, 1, 1]

    def failing(session: dm.MemorySession, text: object, **generation: object) -> object:
        if not left:
            raise ValueError("No more answers.")
        left.pop()
        return stream(session, text, **generation)

    monkeypatch.setattr(dm.MemorySession, "stream", failing)
    done = talk(flags, "I am Al.", "I am Bo.", "Who?", "/undo", again, *lines[2:])
    assert "No more answers." in done.stderr and "the former answer stays" in done.stderr
    assert done.stdout.splitlines()[3:] == kept.stdout.splitlines()[2:]
    assert done.stderr.splitlines()[-3:] == kept.stderr.splitlines()[-3:]
    assert "the memory: " in done.stderr.splitlines()[-3]


def test_only_a_question_is_asked_again(flags: list[str], tmp_path: Path) -> None:
    (tmp_path / "cat.txt").write_text("The cat is red.\n")
    told = f"/remember {tmp_path / 'cat.txt'}"
    done = talk(flags, "Who?", told, "/retry", "/edit So?", "/undo", "/edit So?", "/undoo")
    assert "no question: /undo takes it back, then /retry." in done.stderr
    assert "no question: /undo takes it back, then /edit." in done.stderr
    assert len(done.stdout.splitlines()) == 2
    assert "There is no /undoo. Did you mean /undo? h lists" in done.stderr


def test_turns_of_an_earlier_chat_are_taken_back_when_that_is_meant(
    flags: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "me.safetensors"
    chat = [*flags, "--memory", str(path)]
    talk(chat, "I am Al.", "I am Bo.")
    once = talk(chat, "I am Cy.", "/undo 2", "Who?")
    assert "1 of these 2 turns is of an earlier chat (" in once.stderr
    assert "/undo 2 again does it." in once.stderr and "undone" not in once.stderr
    assert len(read_memory(path).history) == 4
    mine = talk(chat, "I am Di.", "/undo")
    assert "undone 1 turn (I am Di.), " in mine.stderr
    twice = talk(chat, "I am Di.", "/undo 2", "/undo 2", "/undo", "/undo 9")
    assert "undone 2 turns (1 of an earlier chat), " in twice.stderr
    assert "That is a turn of an earlier chat (" in twice.stderr
    assert "9 turns cannot be taken back" in twice.stderr
    assert len(read_memory(path).history) == 3
    reading = talk([*chat, "--read-only"], "/undo")
    assert "undone 1 turn (of an earlier chat), " in reading.stderr
    assert len(read_memory(path).history) == 3


def test_a_turn_of_an_earlier_chat_is_known_for_one_below_a_system_prompt(
    flags: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "me.safetensors"
    chat = [*flags, "--memory", str(path), "--system-prompt", "Be terse."]
    talk(chat, "I am Al.", "I am Bo.")
    told = path.read_bytes()
    done = talk(chat, "/undo")
    assert "That is a turn of an earlier chat (" in done.stderr and "undone" not in done.stderr
    assert path.read_bytes() == told
    assert "undone 1 turn (of an earlier chat)" in talk(chat, "/undo", "/undo").stderr
    assert len(read_memory(path).history) == 1


@pytest.mark.parametrize("prompt", [[], ["--system-prompt", "Be terse."]])
def test_a_reset_of_this_chat_is_undone_unasked(
    flags: list[str], tmp_path: Path, prompt: list[str]
) -> None:
    path = tmp_path / "me.safetensors"
    chat = [*flags, "--memory", str(path), *prompt]
    talk(chat, "I am Al.")
    told = states(path)
    done = talk(chat, "/reset", "/reset", "/undo")
    assert "This empties the memory" in done.stderr
    assert "undone 1 turn, " in done.stderr and "earlier chat" not in done.stderr
    assert all(np.array_equal(told[i], state) for i, state in states(path).items())
    assert len(read_memory(path).history) == 1


def test_fork_and_back(flags: list[str], session: dm.MemorySession, tmp_path: Path) -> None:
    path = tmp_path / "me.safetensors"
    done = talk(
        [*flags, "--memory", str(path)],
        *("I am Al.", "/fork", "I am Bo.", "/fork", "/back", "/back", "Who?"),
    )
    fork = session.fork()
    first = asked(session, "I am Al.")
    fork.ask("I am Al.", max_tokens=6)
    assert done.stdout.splitlines() == [*first, *asked(fork, "I am Bo."), *asked(session, "Who?")]
    kept = dm.MemorySession.restore(path, session.model, session.tokenizer)
    for layer, state in dm.memory_state(session.cache).items():
        assert np.array_equal(np.array(state), np.array(dm.memory_state(kept.cache)[layer]))


def test_a_branch_replaces_the_memory_of_its_chat_only_when_told_to(
    flags: list[str], tmp_path: Path
) -> None:
    path = tmp_path / "me.safetensors"
    chat = [*flags, "--memory", str(path)]
    talk(chat, "I am Al.")
    before = path.read_bytes()
    refused = talk(chat, "/fork", "I am Bo.", f"/save {path}")
    assert f"{path} is there already, and was left as it is" in refused.stderr
    assert path.read_bytes() == before
    branch = ("/fork", "I am Bo.", "I am Cy.", f"/save {path} --overwrite")
    saved = talk(chat, *branch)
    assert f"to {path}" in saved.stderr and len(read_memory(path).history) == 3
    path.write_bytes(before)
    back = talk(chat, *branch, "/back", "Who?")
    assert "another program" not in back.stderr
    assert len(read_memory(path).history) == 2
    deep = talk(chat, "/fork", *branch, "/back", "/back", "Who?", f"/save {path}")
    assert "another program" not in deep.stderr and "is there already" not in deep.stderr
    assert len(read_memory(path).history) == 3


def test_probe_asks_the_memory_and_changes_nothing(
    flags: list[str], session: dm.MemorySession
) -> None:
    done = talk(flags, "I am Al.", "/probe Who? --numbers", "/compare", "Who?")
    empty = dm.MemorySession(session.model, session.tokenizer)
    with empty.read_only():
        without = asked(empty, "I am Al.")
    first, *probed, compared, last = done.stdout.splitlines()
    assert [first, compared, last] == [
        *asked(session, "I am Al."),
        *without,
        *asked(session, "Who?"),
    ]
    assert probed[0].startswith("It says '")
    assert probed[1:3] == ["", "Who?"]
    assert "log p without" in probed[3]
    assert probed[4].startswith("with memory")


def test_stats(flags: list[str]) -> None:
    words = talk(flags, "I am Al.", "/stats").stderr
    assert "this chat: 1 answer; the model sees " in words
    assert " tokens were written into its 0.8 KB; 1 turn can be undone" in words
    assert "norm" not in words
    shown = talk(flags, "I am Al.", "/stats --numbers").stderr
    assert [line.split()[0] for line in shown.splitlines() if "." in line.split()[-1]][-4:-1]


def test_a_deep_model_is_shown_in_twelve_lines() -> None:
    layers = {i: {} for i in range(3, 39)}
    shown = [layer for layer, _ in _spread(layers)]
    assert (len(shown), shown[0], shown[-1]) == (12, 3, 38)


# --- Ctrl-C


class _ScriptedUI:
    """Asks the given questions; presses Ctrl-C at the third piece of every answer."""

    def __init__(self, *lines: str):
        self.lines = iter(lines)
        self.said: list[str] = []
        self.count = 0

    def ask(self) -> str:
        line = next(self.lines, None)
        if line is None:
            raise EOFError
        if line == "^C":
            raise KeyboardInterrupt
        return line

    def answer_piece(self, text: str) -> None:
        self.said.append(text)
        self.count += 1
        if self.count == 3:
            raise KeyboardInterrupt

    def end_answer(self, last: GenerationResponse | None) -> None:
        self.count = 0

    def interrupted(self) -> None:
        self.said.append("q leaves")

    def say(self, text: str, style: str = "strong") -> None: ...

    def waiting(self) -> nullcontext[None]:
        return nullcontext()

    def reading(self, tokens: int, total: int) -> None: ...

    def written(self, tokens: int, strongest: list, stats: dict) -> None: ...


def test_ctrl_c_stops_the_answer_only(session: dm.MemorySession) -> None:
    whole = session.fork()
    ui = _ScriptedUI("I am Al.", "^C", "Who?")
    generation = {"max_tokens": 20}
    Chat(session, ui, {}, generation).run()
    whole.ask("I am Al.", max_tokens=3)
    whole.ask("Who?", max_tokens=3)
    assert session.messages == whole.messages
    assert "q leaves" in ui.said


# --- errors after a turn


class _Pipe(_ScriptedUI):
    """Not a terminal; what it is told of problems is kept."""

    interactive = False

    def __init__(self, *lines: str, breaks: bool = False):
        super().__init__(*lines)
        self.problems: list[str] = []
        self.breaks = breaks

    def answer_piece(self, text: str) -> None:
        if self.breaks:
            raise BrokenPipeError

    def done(self, what: str, more: str = "") -> None: ...

    def problem(self, text: str) -> None:
        self.problems.append(text)


@pytest.mark.parametrize("read_only", [False, True])
def test_an_answer_that_nobody_reads_is_kept(
    session: dm.MemorySession, tmp_path: Path, read_only: bool
) -> None:
    path, ui = tmp_path / "me.safetensors", _Pipe("I am Al.", "q", breaks=True)
    Chat(session, ui, {}, {"max_tokens": 6}, path, read_only).run()
    assert len(ui.problems) == 1
    if read_only:
        assert not path.exists()
    else:
        assert sum(read_memory(path).tokens_written) == session.stats()["tokens_written"] > 0


def test_the_first_of_two_files_is_kept_if_the_second_fails(
    session: dm.MemorySession, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, files = tmp_path / "me.safetensors", [tmp_path / f"{name}.txt" for name in "ab"]
    for file in files:
        file.write_text("My cat is Miso.")
    remembering, left = dm.MemorySession.remembering, [1]

    def failing(session: dm.MemorySession, *args: object, **more: object) -> object:
        if not left:
            raise ValueError("No more files.")
        left.pop()
        return remembering(session, *args, **more)

    monkeypatch.setattr(dm.MemorySession, "remembering", failing)
    ui = _Pipe(f"/remember {files[0]} {files[1]}", f"/remember {files[1]}", "q")
    generation = {"max_tokens": 6, "prefill_step_size": 256}
    Chat(session, ui, {}, generation, path).run()
    assert ui.problems == ["No more files."] * 2
    assert sum(read_memory(path).tokens_written) == session.stats()["tokens_written"] > 0
