"""What a turn made of a memory, as answers say it beside what else was used."""

from ..turns.job import Job


def memory_usage(job: Job | None) -> dict[str, object] | None:
    """Of a request's turn; None: none was kept."""
    if job is None or job.kept is None:
        return None
    kept, options = job.kept, job.request.options
    asked = options is not None and options.strengths
    return {
        "session": options.session if options is not None else None,
        "tokens_written": kept.written,
        "total_tokens_written": kept.saved.tokens_written[0],
        "messages_known": kept.known,
        "turns": kept.saved.told.turns if kept.saved.told else 0,
        "turns_taken_back": kept.back,
        "bytes": sum(state.nbytes for state in kept.saved.states.values()),
        "context_tokens": len(kept.talk.context.tokens),
    } | ({"strengths": kept.strengths} if asked else {})
