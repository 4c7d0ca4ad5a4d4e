"""A model, its memories and mlx-lm's batching: all that answers requests, but for HTTP."""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import mlx.nn as nn
from mlx_lm.tokenizer_utils import TokenizerWrapper

from ..adapters.drafts import cannot_draft
from .batching.generator import MemoryGenerator
from .errors import ApiError
from .kept.conversations import KeptConversations
from .kept.responses import KeptResponses
from .memories.context_file import ContextTerms, can_be_read_back
from .memories.contexts import ContextFolder
from .memories.folder import MemoryFolder, NamedFolder
from .memories.memories import Memories
from .memories.memory import Memory
from .metrics import ServerMetrics
from .provider import PairProvider, ServedPair
from .requests.bodies import MemoryOptions
from .requests.sampling import check_defaults
from .settings import ServeSettings, SettingsError
from .turns.lengths import max_context

log = logging.getLogger(__name__)


class Serving:
    """What answers requests until ``stop``.

    Args:
        model (nn.Module): A model with an adapter.
        tokenizer (TokenizerWrapper): Its tokenizer.
        name (str): What the model is called: a folder or a repository.
        settings (ServeSettings): How to run.
        draft (nn.Module): Guesses ahead: answers are then given one after another. Default: they
          are decoded in one batch.

    Raises:
        ValueError: If the model has no adapter, or cannot be used with these settings.
        OSError: If the folder of memories cannot be made.
    """

    def __init__(
        self,
        model: nn.Module,
        tokenizer: TokenizerWrapper,
        name: str,
        settings: ServeSettings,
        draft: nn.Module | None = None,
    ):
        if draft is not None and (why := cannot_draft(model, draft)):
            raise ValueError(why)
        pair = ServedPair.of(model, tokenizer, settings.chat_template_args, draft)
        check_defaults(settings, pair.vocabulary)
        self.settings, self.metrics = settings, ServerMetrics()
        self.provider = PairProvider(model, tokenizer, name, settings)
        self.vocabulary = pair.vocabulary
        folder = _folder(settings, pair)
        try:
            contexts = _contexts(pair, settings)
        except BaseException:
            folder.close()
            raise
        self.memories = Memories(folder, settings.memory_bytes, settings.wait, contexts)
        self.responses, self.conversations = KeptResponses(), KeptConversations()
        self.started = int(time.time())
        self._mutex = threading.Lock()
        self._busy = 0
        self.generator = MemoryGenerator(self.provider, pair, self.memories, settings, self.metrics)

    @property
    def busy(self) -> int:
        """How many requests wait or run."""
        return self._busy

    def stop(self) -> None:
        """Let running answers end for a while, then end."""
        end = time.monotonic() + self.settings.grace
        while self._busy and time.monotonic() < end:
            time.sleep(0.05)
        self.generator.stop_and_join()
        end = time.monotonic() + 5.0
        while self._busy and time.monotonic() < end:
            time.sleep(0.05)  # threads that tell their clients, or save what was complete
        self.memories.close()
        log.info("stopped")

    @contextmanager
    def admitted(self) -> Iterator[None]:
        """One of the requests that wait or run; raises ApiError if there are too many."""
        with self._mutex:
            if self._busy >= self.settings.max_queue:
                raise ApiError(
                    429,
                    f"{self._busy} requests are waiting or running already. Try again later.",
                    code="queue_full",
                    retry_after=1,
                )
            self._busy += 1
        try:
            yield
        finally:
            with self._mutex:
                self._busy -= 1

    @contextmanager
    def held(self, options: MemoryOptions | None) -> Iterator[Memory | None]:
        """The memory that a request is for, for this thread alone; None: for none."""
        if options is None:
            yield None
            return
        held = self.memories.hold(
            options.session, load=not options.reset, context=options.context == "keep"
        )
        with held as memory:
            yield memory

    def metrics_text(self) -> str:
        """What is counted, in the form that Prometheus reads."""
        totals = self.memories.totals()
        gauges = {
            "requests_running": self._busy,
            "memories_in_ram": totals["memories"],
            "contexts_in_ram": totals["contexts"],
            "memory_bytes_in_ram": totals["bytes"],
            "contexts_evicted": self.memories.evicted["context"],
            "memories_evicted": self.memories.evicted["memory"],
            "prompt_cache_bytes": self.generator.prompt_cache.nbytes,
        }
        for name, value in self.memories.contexts_on_disk().items():
            gauges[f"context_{name}"] = value
        return self.metrics.text(gauges)


def _folder(settings: ServeSettings, pair: ServedPair) -> MemoryFolder:
    if settings.named and settings.memory_dir is not None:
        return NamedFolder(settings.memory_dir, pair)
    return MemoryFolder(settings.memory_dir, pair)


def _contexts(pair: ServedPair, settings: ServeSettings) -> ContextFolder | None:
    """Where contexts lie; None: in RAM only."""
    if settings.context_dir is None:
        return None
    if not can_be_read_back(pair.model):
        raise SettingsError(
            "--context-dir: mlx-lm cannot read the context of this model back. Leave it out."
        )
    terms = ContextTerms(max_context(pair, settings), settings.undo_turns)
    return ContextFolder(settings.context_dir, pair, settings.context_bytes, terms)
