"""`deltamem-mlx chat`: a conversation in the terminal whose memory outlives its context."""

import json
import shlex
from collections.abc import Callable, Generator
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from deltamem_mlx.cli.frame import errors, output
from deltamem_mlx.cli.frame.command import command
from deltamem_mlx.cli.frame.load import has_memory, load_pair
from deltamem_mlx.cli.frame.session import (
    ChatTemplateConfig,
    Memory,
    QuantizedKvStart,
    ReadOnly,
    check_kv_options,
    check_memory_path,
    generation_of,
    open_session,
    seed_with,
    session_settings,
    template_kwargs,
    without_memory,
)
from deltamem_mlx.cli.options import shared as o

if TYPE_CHECKING:
    from mlx_lm.generate import GenerationResponse

    from deltamem_mlx.cli.frame.ui import ChatUI
    from deltamem_mlx.session.generation import Generation
    from deltamem_mlx.session.session import LayerNumbers, MemorySession

MaxContext = Annotated[
    int | None,
    typer.Option(
        "--max-context",
        min=1,
        help="Forget the context when it would exceed this many tokens; the newest turns stay.",
        rich_help_panel=o.CONTEXT,
    ),
]
SHOWN_LAYERS = 12


@dataclass(frozen=True)
class ChatOptions:
    """What `chat` was asked for."""

    model: o.Model = None
    adapter: o.Adapter = None
    system_prompt: o.SystemPrompt = None
    chat_template_config: ChatTemplateConfig = None
    max_tokens: o.MaxTokens = 256
    memory: Memory = None
    read_only: ReadOnly = False
    temp: o.Temp = 0.0
    top_p: o.TopP = 1.0
    top_k: o.TopK = 0
    min_p: o.MinP = 0.0
    seed: o.Seed = None
    max_context: MaxContext = None
    kv_bits: o.KvBits = None
    kv_group_size: o.KvGroupSize = 64
    quantized_kv_start: QuantizedKvStart = 5000
    max_kv_size: o.MaxKvSize = None
    prefill_step_size: o.PrefillStepSize = 2048
    trust_remote_code: o.TrustRemoteCode = False


@command(
    "deltamem-mlx chat",
    "deltamem-mlx chat --model MODEL --adapter ADAPTER --memory me.safetensors",
    "deltamem-mlx chat --model MODEL --adapter ADAPTER --max-context 2048",
)
def chat(options: ChatOptions) -> None:
    """Chat with a model that remembers.

    The keys are those of mlx_lm.chat: q leaves, r begins anew, h lists what else there is.
    Ctrl-C stops an answer; what was said so far stays said.

    With --memory, the memory is loaded from the file and saved to it after each answer. Without
    --model and --adapter, the built-in demo pair answers.
    """
    if not has_memory(options.model, options.adapter):
        raise errors.UsageError(
            "A chat needs a model with a memory: give --adapter, or use mlx_lm.chat."
        )
    template_kwargs(options.chat_template_config)
    check_kv_options(options.kv_bits, options.max_kv_size)
    check_memory_path(options.memory)

    from deltamem_mlx.cli.frame.ui import ChatUI

    model, tokenizer = load_pair(
        options.model, options.adapter, trust_remote_code=options.trust_remote_code
    )
    seed_with(options.seed)
    settings = session_settings(options) | {"max_context": options.max_context}
    session = open_session(options.memory, model, tokenizer, settings)
    ui = ChatUI(quiet=output.settings.quiet)
    rows = {
        "model": options.model or "the built-in pair",
        "adapter": options.adapter,
        "system": options.system_prompt,
        "memory": _memory_row(session, options.memory),
        "max tokens": f"{options.max_tokens:,}",
    }
    ui.header({name: value for name, value in rows.items() if value})
    generation = generation_of(options)
    Chat(session, ui, settings, generation, options.memory, options.read_only).run()


def _memory_row(session: "MemorySession", path: Path | None) -> str | None:
    if path is None:
        return None
    written = session.stats()["tokens_written"]
    return f"{written:,} tokens written, {path}" if written else f"new, {path}"


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
        self.over = False
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
        name = {"q": "/exit", "r": "/reset", "h": "/help"}.get(line, name)
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
        self.commands[name](argument)

    def ask(self, question: str) -> None:
        self.question = question
        with self.session.read_only() if self.read_only else nullcontext():
            self.show(self.session.stream(question, **self.generation))
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
        """Save the memory, if it is to be; a branch is not."""
        if self.memory is not None and not self.read_only and not self.branches:
            self.session.save(self.memory)

    # Commands.

    def remember(self, argument: str) -> None:
        from deltamem_mlx.text.files import read_messages

        path = _path(argument, "/remember FILE")
        messages = read_messages(path)
        step_size = self.generation["prefill_step_size"]
        tokens = self.session.remember(messages, prefill_step_size=step_size)
        self.keep()
        self.ui.done("remembered", f"{tokens:,} tokens of {path}; /forget drops their context")

    def forget(self, _: str) -> None:
        self.session.forget_context()
        self.ui.done("forgotten", "context dropped, memory kept")

    def save(self, argument: str) -> None:
        words = shlex.split(argument)
        transcript = "--with-transcript" in words
        words = [word for word in words if word != "--with-transcript"]
        path = _path(" ".join(words), "/save PATH [--with-transcript]")
        alone = path.suffix.lower() == ".safetensors"
        text = json.dumps(self.session.messages, ensure_ascii=False)
        self.session.save(path, note=text if transcript and alone else "")
        what = "the memory" if alone else "memory, context and text"
        self.ui.done("saved", f"{what}{' with text' if transcript and alone else ''} to {path}")

    def load(self, argument: str) -> None:
        path = _path(argument, "/load PATH")
        settings = {} if path.is_dir() else self.settings
        model, tokenizer = self.session.model, self.session.tokenizer
        self.session = type(self.session).restore(path, model, tokenizer, **settings)
        self.branches, self.question = [], None
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

    def compare(self, _: str) -> None:
        if self.question is None:
            raise ValueError("There is no question yet to compare.")
        self.ui.say("without memory:", "muted")
        model, tokenizer = self.session.model, self.session.tokenizer
        self.show(without_memory(model, tokenizer, self.question, self.settings, self.generation))

    def reset(self, _: str) -> None:
        self.session.reset()
        self.question = None
        self.keep()
        self.ui.done("reset", "context and memory cleared")

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
