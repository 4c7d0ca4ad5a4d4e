"""What a turn made of a memory, as answers say it beside what else was used."""

from ..turns.job import Job


def memory_usage(job: Job | None) -> dict[str, object] | None:
    """Of a request's turn; None: none was kept."""
    if job is None or job.kept is None:
        return None
    kept, options = job.kept, job.request.options
    asked = options is not None and options.strengths
    said: dict[str, object] = {
        "session": options.session if options is not None else None,
        "tokens_written": kept.written,
        "total_tokens_written": kept.saved.tokens_written[0],
        "messages_known": kept.known,
        "turns": kept.saved.told.turns if kept.saved.told else 0,
        "turns_taken_back": kept.back,
        "new": kept.new,
        "bytes": sum(state.nbytes for state in kept.saved.states.values()),
        "context_tokens": len(kept.talk.context.tokens),
    }
    more: dict[str, object] = {"did_you_mean": kept.meant} if kept.meant else {}
    return said | more | ({"strengths": kept.strengths} if asked else {})
