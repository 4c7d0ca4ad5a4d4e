"""A conversation with a memory, turn by turn: only what is new is fed to the model."""

import copy
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Unpack

import mlx.nn as nn
from mlx_lm.generate import GenerationResponse
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..adapters.loading import base_model_of, fingerprint
from ..files import Witness, expanded
from ..files.places import file_of_memory
from ..memory.file import read_memory, write_memory
from ..memory.saving import memory_of, restore_memory
from ..model.arguments import expect
from ..model.patch import spread_of_memory
from ..problems import as_whole
from ..text.messages import Message
from ..text.turns import as_messages
from .file import (
    SESSION,
    SUFFIX,
    SavedSession,
    SessionSettings,
    read_folder,
    save_folder,
)
from .filing import go_on_from, with_last_turns
from .generation import Generation
from .lock import TurnLock
from .past import Before
from .shown import described, html
from .spread_session import fresh_caches, part_here, whole_session
from .stats import Stats, stats_of
from .talk import Talk
from .undoable import UndoableTurn, undoable_turns


class MemorySession(Talk):
    """A conversation whose memory outlives its context.

    Each turn feeds the tokens that it adds, and writes each of them once. With sequence-state
    adapters the ids of messages and sentences follow the chat template (arXiv 2605.12357,
    section 3.3): the opening and a new message are one ingest, the reply is written token by
    token, the template's end of turn is an ingest of its own. (Where the KV cache is a full
    sliding window, an end token that the model generated stays the one-token write that decoding
    made it.)

    Threads may share a session: they wait for each other's turns. Any number of sessions share a
    model. Of a model that is spread over several processes each has a session, and calls the same
    of it in the same order.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): mlx-lm's or transformers' tokenizer, with a chat template.
        system_prompt (str): Stays visible when the context is forgotten; written once, with the
          first turn.
        messages (Sequence[Message]): Messages to open with, fed with the first turn.
        max_context (int): Tokens that the context may hold, reply included. A turn that would
          exceed it forgets the context first; the newest turns stay visible, in up to half of it.
        template_kwargs (Mapping): For the chat template: ``tools``, ``enable_thinking``, ...
        max_kv_size (int): Make the KV cache a sliding window of this many tokens.
        prompt_cache (list): Go on with the memory in this prompt cache.
        draft_model (nn.Module): A smaller model with the same vocabulary that guesses ahead. What
          is said and written is the same without it.
        undo_turns (int): How many of the last turns can be taken back; 0: none.
        undo_bytes (int): Bytes that their states may take together.

    Raises:
        TypeError, ValueError: If the model has no adapter, or an argument cannot be used.
    """

    def __repr__(self) -> str:
        return f"{type(self).__name__}({described(self._conversation)})"

    def _repr_html_(self) -> str:
        with self._lock.reading():
            return html(type(self).__name__, self._conversation)

    def undo(self, turns: int = 1) -> list[Message]:
        """Go back to before the last turns, as if they had never been.

        A turn is an answer, a ``remember``, a ``rewrite`` or a ``reset``. The memory is then what
        it was, bit for bit; what was visible is visible again.

        Args:
            turns (int): How many.

        Returns:
            list[Message]: What those turns were given, replies left out.

        Raises:
            TypeError: If ``turns`` is no integer.
            ValueError: If so many are not kept, or ``turns`` is less than 1.
        """
        turns = as_whole("turns", turns)
        if turns < 1:
            raise ValueError(f"turns is {turns}; expected 1 or more.")
        with self._lock:
            return self._conversation.undo(turns)

    def undoable(self) -> list[UndoableTurn]:
        """The turns that ``undo`` can take back, the last one first.

        Returns:
            list[dict]: ``new``, the messages that the turn was given; ``answered``;
            ``tokens_written`` by it; ``earlier``: known from a memory file only, without a text.
        """
        with self._lock.reading():
            return undoable_turns(self._conversation)

    def regenerate(self, **generation: Unpack[Generation]) -> str:
        """The last answer anew: what it was given is answered again, from the memory before it.

        After an error the session has the former answer again. Arguments as in ``stream``.

        Raises:
            ValueError: If the last turn was not an answer, or is not kept.
        """
        self._check(generation)

        def again() -> Generator[GenerationResponse, None, None]:
            last = self._conversation.past.last()
            if last is not None and last.is_filed:
                raise ValueError(
                    "What the last turn was is not known: a memory file keeps no text. It can be "
                    "taken back with undo()."
                )
            if last is None or not last.answered:
                raise ValueError("The last turn was not answered: there is nothing to regenerate.")
            with self._restored_on_error():
                self._conversation.undo()
                yield from self._answer(last.new, generation, last.write)

        return "".join(response.text for response in self._lock.run(again()))

    def edit(
        self, i: int, text: str | Message | Sequence[Message], **generation: Unpack[Generation]
    ) -> str:
        """Replace the user's message ``i`` by ``text``, and answer from there.

        What came after it is as if it had never been. After an error all is as it was.

        Args:
            i (int): Among the user's messages in ``messages``, from 0; -1 is the last.
            text (str): What it is to be instead.
            **generation: As in ``stream``.

        Raises:
            TypeError: If ``i`` is no integer, or ``text`` no message.
            IndexError: If there is no such message.
            ValueError: If its turn is not kept.
        """
        new, i = as_messages(text), as_whole("i", i)
        self._check(generation)

        def edited() -> Generator[GenerationResponse, None, None]:
            with self._restored_on_error():
                self._conversation.undo_to_user_message(i)
                yield from self._answer(new, generation)

        return "".join(response.text for response in self._lock.run(edited()))

    def branch(self, i: int) -> "MemorySession":
        """An independent session that goes on from just before the user's message ``i``.

        Raises:
            TypeError, IndexError, ValueError: As for ``edit``.
        """
        i = as_whole("i", i)
        new = self.fork()
        new._conversation.undo_to_user_message(i)
        return new

    @contextmanager
    def _restored_on_error(self) -> Iterator[None]:
        """What was taken back is there again if nothing has come to replace it."""
        talk = self._conversation
        before = Before(talk.context.mark(), talk.said, [], answered=False, write=False)
        past = talk.past.copy()
        try:
            yield
        except BaseException:
            last = talk.past.last()  # a new one was kept as far as it was said
            replaced = last is not None and all(last is not turn for turn in past)
            if talk.said is not before.said and not replaced:
                talk.restore(before, past)
            raise

    def fork(self) -> "MemorySession":
        """An independent copy of the session: what either learns, the other does not."""
        with self._lock:
            new = copy.copy(self)
            new._lock, new._holds, new._witness = TurnLock(), 0, self._witness.copy()
            new._conversation = self._conversation.fork()
            return new

    def stats(self) -> Stats:
        """Numbers about the conversation and its memory.

        Returns:
            dict: ``turns``, ``undo_turns`` (that can be taken back), ``messages``,
            ``context_tokens``, ``tokens_written``, ``memory_bytes``, and ``layers``: layer index
            → ``norm``, ``effective_rank``.
        """
        with self._lock.reading():
            return stats_of(self._conversation)

    def save(
        self, path: str | Path, *, note: str | None = None, history: int | None = None
    ) -> None:
        """Save to a file ending in ``.safetensors`` the memory alone, else to a folder everything.

        A session restored from a folder goes on exactly as this one would, and can be taken back
        as far. A memory file has no text in it but ``note``, and the names of files that the last
        turns told. A file that another program has changed since this session read or wrote it, or
        was made, is not replaced.

        Args:
            path (Path): The file or folder.
            note (str): Free text to keep with it. Default: that of the memory file that the
              session was restored from.
            history (int): How many of the last turns can be taken back from a memory file, by a
              session restored from it or by ``dm.undo_memory_file``; they take up to 2 MB.
              Default: as many as the file that the session was restored from can keep, and none
              where that keeps none, or there is none. A folder keeps all that the session does.

        Raises:
            ValueError: If the state is not finite, the folder holds other things, or ``history``
              is less than 0.
            OSError: If it cannot be written, or another program has changed it.
        """
        if history is not None and history < 0:
            raise ValueError(f"history is {history}; expected 0 turns or more.")
        path, ranks = expanded(path), spread_of_memory(self.model).ranks
        with self._lock:
            if path.suffix.lower() == SUFFIX:
                filed = self._conversation.said.filed
                note = filed.note if note is None and filed is not None else note or ""
                memory = memory_of(self.cache, self.model, note=note)
                memory = with_last_turns(self._conversation, memory, history)
                ranks.by_first(lambda: write_memory(path, memory, self._witness))
            else:
                saved = whole_session(self._saved(), self.model)
                ranks.by_first(lambda: save_folder(path, saved, self._witness, note or ""))

    def _saved(self) -> SavedSession:
        talk = self._conversation
        settings: SessionSettings = {
            "max_context": self.max_context,
            "max_kv_size": self.max_kv_size,
            "template_kwargs": self.template_kwargs,
        }
        return SavedSession(
            opening=self._opening,
            said=talk.said,
            cache=self.cache,
            tokens=talk.context.tokens,
            settings=settings,
            adapter=fingerprint(self.model),
            base_model=base_model_of(self.model),
            context=talk.context.which,
            past=list(talk.past),
        )

    @classmethod
    def restore(
        cls,
        path: str | Path,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        **settings: Any,
    ) -> "MemorySession":
        """The session saved at ``path``.

        Args:
            path (Path): A memory file: the context is empty then; or the folder of a session.
            model, tokenizer: As in the constructor, with the adapter that was saved under.
            **settings: For a memory file, as in the constructor; a folder has its own, and takes
              ``draft_model`` only.

        Raises:
            FileNotFoundError: If there is nothing.
            ValueError: If it is damaged, altered, or was saved under another adapter.
        """
        usage = "MemorySession.restore(path, model, tokenizer)"
        expect(usage, path=path, model=model, tokenizer=tokenizer)
        path, witness = expanded(path), Witness()
        if spread_of_memory(model).ranks.by_first(lambda: file_of_memory(path).is_dir()):
            witness.note(path / SESSION)
            session = cls._from_folder(path, model, tokenizer, settings)
        else:
            witness.note(path)
            session = cls._from_memory(path, model, tokenizer, settings)
        session._witness = witness
        return session

    @classmethod
    def _from_memory(
        cls,
        path: Path,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        settings: Mapping[str, Any],
    ) -> "MemorySession":
        memory = spread_of_memory(model).ranks.by_first(lambda: read_memory(path))
        cache = make_prompt_cache(model, settings.get("max_kv_size"))
        if len(memory.tokens_written) > 1:
            raise ValueError(
                f"{path} holds the memories of {len(memory.tokens_written)} conversations, and a "
                "session has one. Load it with dm.load_memory."
            )
        restore_memory(path, memory, cache, model)
        session = cls(model, tokenizer, **settings, prompt_cache=cache)
        try:
            go_on_from(session._conversation, memory)
        except ValueError as error:
            raise ValueError(f"{path} is damaged: {error}.") from error
        return session

    @classmethod
    def _from_folder(
        cls,
        folder: Path,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        settings: Mapping[str, Any],
    ) -> "MemorySession":
        running = {name: settings[name] for name in settings if name == "draft_model"}
        settings = {name: settings[name] for name in settings if name not in running}
        if settings:
            raise ValueError(
                f"{folder} is the folder of a session, which has settings of its own: leave out "
                f"{', '.join(settings)}."
            )
        adapter, fresh = fingerprint(model), fresh_caches(model)
        read = spread_of_memory(model).ranks.by_first(lambda: read_folder(folder, adapter, fresh))
        session = cls(model, tokenizer, **read.settings, **running)
        session._opening = read.opening
        session._conversation.go_on(part_here(read, model))
        return session
