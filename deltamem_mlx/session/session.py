"""A conversation with a memory, turn by turn: only what is new is fed to the model."""

import copy
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import mlx.nn as nn
from mlx_lm.models.cache import make_prompt_cache
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..adapters.loading import base_model_of, fingerprint, has_fingerprint
from ..files import Witness, expanded
from ..files.places import file_of_memory
from ..memory.file import read_memory, write_memory
from ..memory.saving import memory_of, restore_memory
from ..model.arguments import expect
from ..model.patch import spread_of_memory
from ..problems import as_whole
from .file import (
    SESSION,
    SUFFIX,
    SavedSession,
    SessionSettings,
    read_folder,
    save_folder,
)
from .filing import go_on_from, with_last_turns
from .going_back import GoingBack
from .lock import TurnLock
from .shown import described, html
from .spread_session import fresh_caches, part_here, whole_session
from .stats import Stats, stats_of


class MemorySession(GoingBack):
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

    def branch(self, i: int) -> "MemorySession":
        """An independent session that goes on from just before the user's message ``i``.

        Raises:
            TypeError, IndexError, ValueError: As for ``edit``.
        """
        i = as_whole("i", i)
        new = self.fork()
        new._conversation.undo_to_user_message(i)
        return new

    def fork(self) -> "MemorySession":
        """An independent copy of the session: what either learns, the other does not."""
        with self._lock:
            new = copy.copy(self)
            new._lock, new._holds, new._witness = TurnLock(), 0, self._witness.copy()
            new._conversation = self._conversation.fork()
            return new

    def know_files_of(self, fork: "MemorySession") -> None:
        """Know the files that a fork of this session has read or saved since, as if it had itself.

        What the fork has saved to a file is no other program's then: ``save`` may replace it.
        """
        with self._lock:
            self._witness.learn(fork._witness)

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
              session restored from it or by ``dm.undo_memory_file``: at most 1,024, in up to 2 MB.
              Default: as many as the file that the session was restored from can keep, and none
              where that keeps none, or there is none. A folder keeps all that the session does.

        Raises:
            ValueError: If the state is not finite, the folder holds other things, what was said is
              too long to be read again, or ``history`` is less than 0.
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
        ours, fresh = partial(has_fingerprint, model), fresh_caches(model)
        read = spread_of_memory(model).ranks.by_first(lambda: read_folder(folder, ours, fresh))
        session = cls(model, tokenizer, **read.settings, **running)
        session._opening = read.opening
        session._conversation.go_on(part_here(read, model))
        return session
