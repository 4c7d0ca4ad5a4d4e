"""The `/commands` of `chat`."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.chat.answering import Answering
from deltamem_mlx.cli.frame import launched
from deltamem_mlx.cli.frame.session import named_memory, without_memory
from deltamem_mlx.files.places import shown_memory

if TYPE_CHECKING:
    from deltamem_mlx.session.stats import LayerNumbers

SHOWN_LAYERS = 12
ALONE = {"/forget", "/fork", "/back", "/stats", "/reset", "/retry", "/exit", "/help"}


class Commands(Answering):
    """What can be done in a chat beside asking; each takes what was typed after its name."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.over, self.resetting = False, False
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

    def carry_out(self, name: str, argument: str) -> None:
        if name not in self.commands:
            raise ValueError(f"There is no {name}. h lists what there is.")
        if argument and name in ALONE:
            raise ValueError(f"{name} takes nothing after it, and nothing was done.")
        if name != "/reset":
            self.resetting = False
        self.commands[name](argument)

    def remember(self, argument: str) -> None:
        from deltamem_mlx.cli.frame.telling import sources_of, tell

        if not (words := shlex.split(argument)):
            raise ValueError("Expected /remember FILE, a folder, or several.")
        paths = [Path(word).expanduser() for word in words]
        sources = launched.first(lambda: sources_of(paths, "/remember"))
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
        if launched.first(path.is_file) and path not in self.own and not overwrite:
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
        """Go on in what was saved, and save there: the memory that is left stays as it was."""
        path = launched.first(lambda: _memory_or_path(_word(argument, "/load PATH")))
        settings = self.settings
        if launched.first(path.is_dir):
            settings = {"draft_model": settings.get("draft_model")}
        model, tokenizer = self.session.model, self.session.tokenizer
        self.session = type(self.session).restore(path, model, tokenizer, **settings)
        self.branches, self.question = [], None
        self.own = {path}  # what is saved elsewhere now would be another memory
        where = self._save_to(path)
        stats, name = self.session.stats(), shown_memory(path)
        written, context = stats["tokens_written"], stats["context_tokens"]
        self.ui.done(
            "loaded", f"{name}: {written:,} tokens written, {context:,} in the context; {where}"
        )

    def _save_to(self, path: Path) -> str:
        """Save there from now on, if turns are saved at all; returns what is said of it."""
        if self.memory is None:
            return "turns are not saved (no --memory): /save does"
        left, name, self.memory, self.name = self.memory, self.name, path, shown_memory(path)
        if self.read_only:
            return "turns are not saved (--read-only)"
        same = left.resolve() == path.resolve()
        return "saved to it from now on" + ("" if same else f"; {name} stays as it was")

    def fork(self, _: str) -> None:
        self.branches.append(self.session)
        self.session = self.session.fork()
        saved = f"; what is said in a branch is not saved to {self.name}" if self.memory else ""
        self.ui.done("forked", f"branch {len(self.branches)}: /back ends it{saved}")

    def back(self, _: str) -> None:
        if not self.branches:
            raise ValueError("There is no branch to leave; /fork begins one.")
        self.session = self.branches.pop()
        self.ui.done("back", f"{len(self.session.messages)} messages")

    def stats(self, _: str) -> None:
        stats = self.session.stats()
        turns = stats["turns"]
        self.ui.say(
            f"{turns:,} turn{'s' * (turns != 1)} · "
            f"{stats['context_tokens']:,} tokens in the context · "
            f"{stats['tokens_written']:,} written · {stats['memory_bytes']:,} bytes of memory"
        )
        rows = [["layer", "norm", "effective rank"]]
        rows += [
            [str(layer), f"{numbers['norm']:.3f}", f"{numbers['effective_rank']:.2f}"]
            for layer, numbers in _spread(stats["layers"])
        ]
        self.ui.table(rows)

    def probe(self, argument: str) -> None:
        question, numbers = argument.removesuffix("--numbers").strip(), "--numbers" in argument
        if not question:
            raise ValueError("Expected /probe QUESTION, and --numbers for figures.")
        from deltamem_mlx.inspection.probe import probe
        from deltamem_mlx.memory.actions import memory_state
        from deltamem_mlx.views.inspection_report import probe_text
        from deltamem_mlx.views.inspection_words import probe_words

        probed = probe(
            self.session.model,
            self.session.tokenizer,
            memory_state(self.session.cache),
            [question],
            system_prompt=self.settings["system_prompt"],
            template_kwargs=self.settings["template_kwargs"],
            max_tokens=self.generation["max_tokens"],
        )
        self.ui.piece(f"{probe_words(probed)}\n")
        if numbers:
            self.ui.piece(f"\n{probe_text(probed)}\n")

    def compare(self, argument: str) -> None:
        question = argument or self.question
        if question is None:
            raise ValueError("There is no question yet to compare: /compare QUESTION.")
        self.ui.say("without memory:", "muted")
        model, tokenizer = self.session.model, self.session.tokenizer
        generation = self.watched_prompt()
        self.show(without_memory(model, tokenizer, question, self.settings, generation))

    def reset(self, _: str) -> None:
        if not self._may_reset():
            return
        self.resetting = False
        self.session.reset()
        self.question = None
        self.keep()
        self.ui.done("reset", "context and memory cleared; /undo brings them back")

    def _may_reset(self) -> bool:
        """Ask before a memory is emptied: in a terminal there and then, else by doing it again."""
        kept = self.memory is not None and not self.read_only
        if self.ui.interactive and self.session.stats()["tokens_written"]:
            what = f"the memory {self.name}" if kept else "the memory"
            if self.ui.confirm(f"Empty {what}?"):
                return True
            self.ui.say("nothing was done", "muted")
            return False
        if kept and not self.resetting and not self.ui.interactive:
            self.resetting = True
            self.ui.say(f"This empties the memory {self.name}: r again does it.", "warn")
            return False
        return True

    def undo(self, argument: str) -> None:
        if argument and not argument.isdecimal():
            raise ValueError("Expected /undo, or /undo N for so many turns.")
        turns = int(argument or 1)
        self.session.undo(turns)
        self.keep()
        said = self.session.stats()
        what = f"{turns} turn{'s' * (turns != 1)}"
        self.ui.done("undone", f"{what}; {said['undo_turns']} more can be")

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


def _word(argument: str, usage: str) -> str:
    words = shlex.split(argument)
    if len(words) != 1:
        raise ValueError(f"Expected {usage}.")
    return words[0]


def _path(argument: str, usage: str) -> Path:
    return Path(_word(argument, usage)).expanduser()


def _memory_or_path(text: str) -> Path:
    return named_memory(text) or Path(text).expanduser()


def _spread(layers: dict[int, "LayerNumbers"]) -> list[tuple[int, "LayerNumbers"]]:
    """At most SHOWN_LAYERS layers, evenly spread."""
    items = list(layers.items())
    if len(items) <= SHOWN_LAYERS:
        return items
    last = len(items) - 1
    return [items[round(i * last / (SHOWN_LAYERS - 1))] for i in range(SHOWN_LAYERS)]
