"""What is counted and logged of a request when it is over: numbers and names, never a text."""

import logging
from dataclasses import dataclass

from ..metrics import ServerMetrics
from ..turns.job import Job, ServedRequest

log = logging.getLogger(__name__)
_METHODS = ("GET", "POST", "PUT", "DELETE", "OPTIONS", "HEAD", "PATCH")


@dataclass
class Account:
    """One request.

    Attributes:
        route (str): Its address, without what is a key in it.
        status (int): That was sent; 0: none.
        request (ServedRequest): What was asked; None: nothing that the model would answer.
    """

    route: str = "unknown"
    status: int = 0
    request: ServedRequest | None = None

    @property
    def job(self) -> Job | None:
        """What became of the request in the batch; None: it was never there."""
        return self.request.job if self.request is not None else None

    def close(self, metrics: ServerMetrics, method: str, seconds: float) -> None:
        """Count and log it."""
        # Each method has counters of its own: clients may not make up more of them.
        method = method if method in _METHODS else "other"
        metrics.requests.add(route=self.route, method=method, status=self.status)
        extra: dict[str, object] = {"route": self.route, "method": method, "status": self.status}
        extra["seconds"] = round(seconds, 4)
        if self.request is not None:
            extra |= _count(self.request, metrics, seconds)
        log.info("request", extra=extra)


def _count(request: ServedRequest, metrics: ServerMetrics, seconds: float) -> dict[str, object]:
    """Count what the model did; returns what is logged of it."""
    extra: dict[str, object] = {}
    if request.memory is not None:
        extra["memory"] = request.memory.id[:12]
    job = request.job
    if job is not None and job.ctx is not None:
        metrics.seconds.observe(seconds)
        if job.first is not None:
            metrics.first.observe(job.first - job.began)
        metrics.prompt_tokens.add(len(job.ctx.prompt))
        metrics.cached_tokens.add(job.ctx.prompt_cache_count)
        metrics.generated_tokens.add(len(job.reply))
        extra |= {"prompt_tokens": len(job.ctx.prompt), "generated_tokens": len(job.reply)}
    if job is not None and request.memory is not None:
        metrics.turns.add(outcome="kept" if job.kept else "dropped")
        if job.kept:
            metrics.written_tokens.add(job.kept.written)
            extra["tokens_written"] = job.kept.written
    return extra
