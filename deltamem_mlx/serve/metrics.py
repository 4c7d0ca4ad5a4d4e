"""What is counted, in the form that Prometheus reads."""

import threading
from collections import defaultdict
from collections.abc import Iterator

_BUCKETS = (0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0)


class Counter:
    """A number that grows, for each combination of labels."""

    kind = "counter"

    def __init__(self, name: str, help: str):
        self.name, self.help = name, help
        self._lock = threading.Lock()
        self._values: dict[tuple, float] = defaultdict(float)

    def add(self, amount: float = 1, **labels: object) -> None:
        """Count."""
        with self._lock:
            self._values[tuple(sorted(labels.items()))] += amount

    def lines(self) -> Iterator[str]:
        """In Prometheus' text form."""
        with self._lock:
            values = sorted(self._values.items()) or [((), 0.0)]
        for labels, value in values:
            yield f"{self.name}{_labels(labels)} {value:g}"


class Histogram(Counter):
    """How long something took, in seconds."""

    kind = "histogram"

    def observe(self, seconds: float) -> None:
        """Count one."""
        for bound in _BUCKETS:
            self.add(seconds <= bound, le=f"{bound:g}")
        self.add(1, le="+Inf")
        self.add(seconds, part="sum")

    def lines(self) -> Iterator[str]:
        """In Prometheus' text form; nothing before the first."""
        with self._lock:
            values = {dict(labels).get("le", "sum"): v for labels, v in self._values.items()}
        if values:
            for bound in (*(f"{bound:g}" for bound in _BUCKETS), "+Inf"):
                yield f'{self.name}_bucket{{le="{bound}"}} {values[bound]:g}'
            yield f"{self.name}_sum {values['sum']:.6f}"
            yield f"{self.name}_count {values['+Inf']:g}"


class ServerMetrics:
    """The counters of a server."""

    def __init__(self) -> None:
        def counter(name: str, help: str) -> Counter:
            return Counter(f"deltamem_{name}_total", help)

        self.requests = counter("requests", "Requests answered, by route, method and status.")
        self.turns = counter("turns", "Turns of memories, by what became of them.")
        self.prompt_tokens = counter("prompt_tokens", "Tokens of prompts.")
        self.cached_tokens = counter("cached_tokens", "Of those, not fed again.")
        self.generated_tokens = counter("generated_tokens", "Tokens generated.")
        self.written_tokens = counter("written_tokens", "Tokens written into memories.")
        self.failed_batches = counter("failed_batches", "Batches lost to an error.")
        self.seconds = Histogram("deltamem_answer_seconds", "Time from request to end of answer.")
        self.first = Histogram("deltamem_first_token_seconds", "Time to the first piece.")

    def text(self, gauges: dict[str, float]) -> str:
        """All of them, and gauges that are read now."""
        lines = []
        for metric in vars(self).values():
            lines += [f"# HELP {metric.name} {metric.help}", f"# TYPE {metric.name} {metric.kind}"]
            lines += metric.lines()
        for name, value in gauges.items():
            lines += [f"# TYPE deltamem_{name} gauge", f"deltamem_{name} {value:g}"]
        return "\n".join(lines) + "\n"


def _labels(labels: tuple) -> str:
    pairs = ",".join(f'{name}="{value}"' for name, value in labels)
    return f"{{{pairs}}}" if pairs else ""
