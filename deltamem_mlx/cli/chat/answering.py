"""A question to an answer on the screen: asked, watched, stopped, kept."""

from collections.abc import Generator, Iterator
from contextlib import closing, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from deltamem_mlx.cli.frame.telling import unknown_words_text
from deltamem_mlx.files.places import shown_memory

if TYPE_CHECKING:
    from mlx_lm.generate import GenerationResponse

    from deltamem_mlx.cli.chat.ui import ChatUI
    from deltamem_mlx.session.generation import Generation
    from deltamem_mlx.session.session import MemorySession
    from deltamem_mlx.text.messages import Message


class Answering:
    """A conversation on the screen.

    - session: the conversation.
    - settings, generation: what new sessions and answers are made with.
    - memory: the file, or the folder of a saved session, that is saved to after each answer.
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
        self.name = "" if memory is None else shown_memory(memory)
        self.branches: list[MemorySession] = []
        self.question: str | None = None
        self.own = {memory} if memory is not None else set()  # files that may be replaced

    def ask(self, question: str) -> None:
        self.question = question
        self.answer(question)

    def answer(self, new: str | list["Message"]) -> None:
        from deltamem_mlx.inspection.turn import watched

        with self.session.read_only() if self.read_only else nullcontext():
            with watched(self.session) as watch:
                generation = self.watched_prompt()
                with self.kept_on_error():
                    said = self.show(self.session.stream(new, **generation))
            self.keep()
        if isinstance(new, str) and (unknown := unknown_words_text(self.session.tokenizer, new)):
            self.ui.say(unknown, "muted")
        if watch.written:
            texts = [new] if isinstance(new, str) else [str(m.get("content")) for m in new]
            self.ui.written(watch.written, watch.strongest(3, [*texts, said]), self.session.stats())

    def watched_prompt(self) -> "Generation":
        """The arguments of an answer, with a spinner while its prompt is read."""
        return {**self.generation, "prompt_progress_callback": self.ui.reading}

    def show(self, responses: Generator["GenerationResponse", None, None]) -> str:
        """Write an answer as it comes; returns what was said before the end or Ctrl-C."""
        last, said = None, ""
        with closing(responses), self.ui.waiting():
            try:
                for last in responses:
                    said += last.text
                    self.ui.answer_piece(last.text)
            except KeyboardInterrupt:
                if last is None:
                    self.ui.say("stopped while reading: nothing of it was written", "warn")
                    return ""
                self.ui.answer_piece(" ...")
        self.ui.end_answer(last)
        return said

    @contextmanager
    def kept_on_error(self) -> Iterator[None]:
        """What was written before an error within this is kept, as it stays in the session: the
        answer that nobody reads, the first of two files."""
        written = self.session.stats()["tokens_written"]
        try:
            yield
        except BaseException:
            if self.session.stats()["tokens_written"] != written:
                self.keep()
            raise

    def keep(self) -> None:
        """A turn is over."""
