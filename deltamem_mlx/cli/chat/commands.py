"""The `/commands` of `chat`."""

from collections.abc import Callable
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.chat.keeping import words_in
from deltamem_mlx.cli.chat.taking_back import TakingBack
from deltamem_mlx.cli.frame import launched
from deltamem_mlx.cli.frame.session import without_memory

if TYPE_CHECKING:
    from deltamem_mlx.session.stats import LayerNumbers

SHOWN_LAYERS = 12
ALONE = {"/forget", "/fork", "/back", "/memories", "/redo", "/reset", "/retry", "/exit", "/help"}


class Commands(TakingBack):
    """What can be done in a chat beside asking; each takes what was typed after its name."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.over = False
        self.commands: dict[str, Callable[[str], None]] = {
            "/remember": self.remember,
            "/forget": self.forget,
            "/save": self.save,
            "/load": self.load,
            "/memories": self.memories,
            "/fork": self.fork,
            "/back": self.back,
            "/stats": self.stats,
            "/probe": self.probe,
            "/compare": self.compare,
            "/reset": self.reset,
            "/undo": self.undo,
            "/redo": self.redo,
            "/retry": self.retry,
            "/temp": self.temp,
            "/edit": self.edit,
            "/exit": self.exit,
            "/help": lambda _: self.ui.help(),
        }

    def carry_out(self, name: str, argument: str) -> None:
        if name not in self.commands:
            close = get_close_matches(name, self.commands, 1)
            meant = f" Did you mean {close[0]}?" if close else ""
            raise ValueError(f"There is no {name}.{meant} h lists what there is.")
        if argument and name in ALONE:
            raise ValueError(f"{name} takes nothing after it, and nothing was done.")
        if self.asked != (name, argument):
            self.asked = None
        self.commands[name](argument)

    def remember(self, argument: str) -> None:
        from deltamem_mlx.cli.frame.telling import sources_of, tell

        if not (words := words_in(argument)):
            raise ValueError("Expected /remember FILE, a folder, or several.")
        paths = [Path(word).expanduser() for word in words]
        sources = launched.first(lambda: sources_of(paths, "/remember"))
        step_size = self.generation["prefill_step_size"]
        with self.kept_on_error():
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

    def fork(self, _: str) -> None:
        self.branches.append(self.session)
        self.session = self.session.fork()
        saved = f"; what is said in a branch is not saved to {self.name}" if self.memory else ""
        self.ui.done("forked", f"branch {len(self.branches)}: /back ends it{saved}")

    def back(self, _: str) -> None:
        if not self.branches:
            raise ValueError("There is no branch to leave; /fork begins one.")
        branch, said = self.session, self.session.stats()["turns"]
        self.session = self.branches.pop()
        self.session.know_files_of(branch)  # its /save is no other program's
        said = max(0, said - self.session.stats()["turns"])
        gone = f"what was said in it is gone ({said} answer{'s' * (said != 1)})"
        self.ui.done("back", f"to where branch {len(self.branches) + 1} began; {gone}")

    def stats(self, argument: str) -> None:
        if argument not in ("", "--numbers"):
            raise ValueError("Expected /stats, and --numbers for figures of each layer.")
        stats = self.session.stats()
        turns, seen, written = stats["turns"], stats["context_tokens"], stats["tokens_written"]
        undo = stats["undo_turns"]
        self.ui.say(
            f"this chat: {turns:,} answer{'s' * (turns != 1)}; the model sees {seen:,} tokens of "
            "it word for word, and the rest through the memory"
        )
        kilobytes = f"{stats['memory_bytes'] / 1000:.1f} KB"
        self.ui.say(
            f"the memory: {written:,} tokens were written into its {kilobytes}; "
            f"{undo} turn{'s' * (undo != 1)} can be undone"
        )
        if not argument:
            self.ui.say("/probe QUESTION asks it; /stats --numbers has each layer", "muted")
            return
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

    def exit(self, _: str) -> None:
        if self.may_lose("/exit"):
            self.leave()

    def leave(self) -> None:
        """End the chat, whatever is lost by it."""
        if self.unsaved:
            self.ui.say(f"what was said last is not in {self.name}", "warn")
        self.over = True
        self.ui.say("bye", "muted")


def _spread(layers: dict[int, "LayerNumbers"]) -> list[tuple[int, "LayerNumbers"]]:
    """At most SHOWN_LAYERS layers, evenly spread."""
    items = list(layers.items())
    if len(items) <= SHOWN_LAYERS:
        return items
    last = len(items) - 1
    return [items[round(i * last / (SHOWN_LAYERS - 1))] for i in range(SHOWN_LAYERS)]
