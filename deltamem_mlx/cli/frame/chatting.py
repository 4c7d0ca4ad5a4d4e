"""The loop of `chat`: a line is a key, a command or a question."""

import json
import shlex
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.frame import errors, output
from deltamem_mlx.cli.frame.session import without_memory

if TYPE_CHECKING:
    from mlx_lm.generate import GenerationResponse

    from deltamem_mlx.cli.frame.ui import ChatUI
    from deltamem_mlx.session.generation import Generation
    from deltamem_mlx.session.session import MemorySession
    from deltamem_mlx.session.stats import LayerNumbers
    from deltamem_mlx.text.messages import Message

SHOWN_LAYERS = 12
# What people type who know another chat: never a question.
KEYS = {
    **dict.fromkeys(("q", "exit", "quit", ":q", ":wq", "bye"), "/exit"),
    **dict.fromkeys(("h", "help", "?", ":help"), "/help"),
    "r": "/reset",
}
ALONE = {"/forget", "/fork", "/back", "/stats", "/reset", "/retry", "/exit", "/help"}


class Chat:
    """The loop: questions are answered, commands carried out, until one of them ends it.

    - session: the conversation.
    - settings, generation: what new sessions and answers are made with.
    - memory: the file that the memory is saved to after each answer.
    - read_only: never learn, never save.
    """

    def __init__(
        self,
        session: "MemorySession",
        ui: "ChatUI",
        settings: dict[str, Any],
        generation: "Generation",
        memory: Path | None = None,
        read_only: bool = False,
    ):
        self.session, self.ui = session, ui
        self.settings, self.generation = settings, generation
        self.memory, self.read_only = memory, read_only
        self.branches: list[MemorySession] = []
        self.question: str | None = None
        self.over, self.resetting = False, False
        self.own = {memory} if memory is not None else set()  # files that may be replaced
        self.commands: dict[str, Callable[[str], None]] = {
            "/remember": self.remember,
            "/forget": self.forget,
            "/save": self.save,
            "/load": self.load,
            "/fork": self.fork,
            "/back": self.back,
            "/stats": self.stats,
            "/probe": self.probe,
            "/compare": self.compare,
            "/reset": self.reset,
            "/undo": self.undo,
            "/retry": self.retry,
            "/edit": self.edit,
            "/exit": self.exit,
            "/help": lambda _: self.ui.help(),
        }

    def run(self) -> None:
        while not self.over:
            try:
                self.answer_to(self.ui.ask().strip())
            except EOFError:
                self.exit("")
            except ValueError as error:
                self.ui.problem(str(error))
            except KeyboardInterrupt:
                self.ui.interrupted()

    def answer_to(self, line: str) -> None:
        """One line: a key, a command or a question. Errors are shown, and the chat goes on."""
        name, _, rest = line.partition(" ")
        name = KEYS.get(line.lower(), name)
        try:
            if name.startswith("/"):
                self.carry_out(name, rest.strip())
            elif line:
                self.ask(line)
        except Exception as error:
            if output.settings.debug:
                self.ui.console.print_exception()
            self.ui.problem(errors.sentence(error))

    def carry_out(self, name: str, argument: str) -> None:
        if name not in self.commands:
            raise ValueError(f"There is no {name}. h lists what there is.")
        if argument and name in ALONE:
            raise ValueError(f"{name} takes nothing after it, and nothing was done.")
        if name != "/reset":
            self.resetting = False
        self.commands[name](argument)

    def ask(self, question: str) -> None:
        self.question, self.resetting = question, False
        self.answer(question)

    def answer(self, new: str | list["Message"]) -> None:
        with self.session.read_only() if self.read_only else nullcontext():
            self.show(self.session.stream(new, **self.generation))
        self.keep()

    def show(self, responses: Generator["GenerationResponse", None, None]) -> None:
        last = None
        with closing(responses):
            try:
                for last in responses:
                    self.ui.piece(last.text)
            except KeyboardInterrupt:
                self.ui.piece(" ...")
        self.ui.end_answer(last)

    def keep(self) -> None:
        """Save the memory and its last turns, if it is to be; a branch is not."""
        from deltamem_mlx.memory.history import HISTORY_TURNS

        if self.memory is not None and not self.read_only and not self.branches:
            self.session.save(self.memory, history=HISTORY_TURNS)

    # Commands.

    def remember(self, argument: str) -> None:
        from deltamem_mlx.cli.frame.telling import sources_of, tell

        if not (words := shlex.split(argument)):
            raise ValueError("Expected /remember FILE, a folder, or several.")
        sources = sources_of([Path(word).expanduser() for word in words], "/remember")
        step_size = self.generation["prefill_step_size"]
        told = tell(self.session, sources, step_size=step_size)
        if told.tokens:
            self.keep()
        if told.stopped_in is not None:
            self.ui.say(told.stopped(), "warn")
            return
        what = sources[0].name if len(sources) == 1 else f"{told.files} files"
        self.ui.done("remembered", f"{told.tokens:,} tokens of {what}; /forget drops their context")

    def forget(self, _: str) -> None:
        self.session.forget_context()
        self.ui.done("forgotten", "context dropped, memory kept")

    def save(self, argument: str) -> None:
        words = shlex.split(argument)
        transcript = "--with-transcript" in words
        overwrite = "--overwrite" in words
        words = [word for word in words if word not in ("--with-transcript", "--overwrite")]
        path = _path(shlex.join(words), "/save PATH [--with-transcript] [--overwrite]")
        if path.is_file() and path not in self.own and not overwrite:
            raise ValueError(
                f"{path} is there already, and was left as it is. To replace it: "
                f"/save {shlex.quote(str(path))} --overwrite"
            )
        alone = path.suffix.lower() == ".safetensors"
        text = json.dumps(self.session.messages, ensure_ascii=False)
        self.session.save(path, note=text if transcript and alone else None)
        self.own.add(path)
        what = "the memory" if alone else "memory, context and text"
        self.ui.done("saved", f"{what}{' with text' if transcript and alone else ''} to {path}")

    def load(self, argument: str) -> None:
        path = _path(argument, "/load PATH")
        settings = {} if path.is_dir() else self.settings
        model, tokenizer = self.session.model, self.session.tokenizer
        self.session = type(self.session).restore(path, model, tokenizer, **settings)
        self.branches, self.question = [], None
        self.own.add(path)
        stats = self.session.stats()
        written, context = stats["tokens_written"], stats["context_tokens"]
        self.ui.done("loaded", f"{written:,} tokens written, {context:,} in the context")

    def fork(self, _: str) -> None:
        self.branches.append(self.session)
        self.session = self.session.fork()
        saved = " and is not saved to the --memory file" if self.memory else ""
        self.ui.done("forked", f"branch {len(self.branches)}: /back ends it{saved}")

    def back(self, _: str) -> None:
        if not self.branches:
            raise ValueError("There is no branch to leave; /fork begins one.")
        self.session = self.branches.pop()
        self.ui.done("back", f"{len(self.session.messages)} messages")

    def stats(self, _: str) -> None:
        stats = self.session.stats()
        self.ui.say(
            f"{stats['turns']:,} turns · {stats['context_tokens']:,} tokens in the context · "
            f"{stats['tokens_written']:,} written · {stats['memory_bytes']:,} bytes of memory"
        )
        rows = [["layer", "norm", "effective rank"]]
        rows += [
            [str(layer), f"{numbers['norm']:.3f}", f"{numbers['effective_rank']:.2f}"]
            for layer, numbers in _spread(stats["layers"])
        ]
        self.ui.table(rows)

    def probe(self, argument: str) -> None:
        if not argument:
            raise ValueError("Expected /probe QUESTION.")
        from deltamem_mlx.inspection.probe import probe
        from deltamem_mlx.memory.actions import memory_state
        from deltamem_mlx.views.inspection_report import probe_text

        probed = probe(
            self.session.model,
            self.session.tokenizer,
            memory_state(self.session.cache),
            [argument],
            system_prompt=self.settings["system_prompt"],
            template_kwargs=self.settings["template_kwargs"],
            max_tokens=self.generation["max_tokens"],
        )
        self.ui.piece(probe_text(probed).rstrip("\n") + "\n")

    def compare(self, argument: str) -> None:
        question = argument or self.question
        if question is None:
            raise ValueError("There is no question yet to compare: /compare QUESTION.")
        self.ui.say("without memory:", "muted")
        model, tokenizer = self.session.model, self.session.tokenizer
        self.show(without_memory(model, tokenizer, question, self.settings, self.generation))

    def reset(self, _: str) -> None:
        if self.memory is not None and not self.read_only and not self.resetting:
            self.resetting = True
            self.ui.say(f"This empties the memory in {self.memory}: r again does it.", "warn")
            return
        self.resetting = False
        self.session.reset()
        self.question = None
        self.keep()
        self.ui.done("reset", "context and memory cleared; /undo brings them back")

    def undo(self, argument: str) -> None:
        if argument and not argument.isdecimal():
            raise ValueError("Expected /undo, or /undo N for so many turns.")
        turns = int(argument or 1)
        self.session.undo(turns)
        self.keep()
        said = self.session.stats()
        self.ui.done("undone", f"{turns} turns; {said['undo_turns']} more can be")

    def retry(self, _: str) -> None:
        if not self.session.stats()["turns"]:
            raise ValueError("There is no question yet in this chat; /undo goes back before it.")
        taken = self.session.undo()
        if not taken:
            raise ValueError("The last turn was no question; /undo has taken it back.")
        self.answer(taken)

    def edit(self, argument: str) -> None:
        if not argument:
            raise ValueError("Expected /edit TEXT: what the last message is to be instead.")
        if not self.session.stats()["turns"]:
            raise ValueError("There is no message yet in this chat; /undo goes back before it.")
        self.session.undo()
        self.ask(argument)

    def exit(self, _: str) -> None:
        self.over = True
        self.ui.say("bye", "muted")


def _path(argument: str, usage: str) -> Path:
    words = shlex.split(argument)
    if len(words) != 1:
        raise ValueError(f"Expected {usage}.")
    return Path(words[0]).expanduser()


def _spread(layers: dict[int, "LayerNumbers"]) -> list[tuple[int, "LayerNumbers"]]:
    """At most SHOWN_LAYERS layers, evenly spread."""
    items = list(layers.items())
    if len(items) <= SHOWN_LAYERS:
        return items
    last = len(items) - 1
    return [items[round(i * last / (SHOWN_LAYERS - 1))] for i in range(SHOWN_LAYERS)]
