"""Log lines, for people or in JSON: of numbers and names, never of what users say."""

import json
import logging
import sys
import time

_EXTRA = (
    "method",
    "route",
    "status",
    "seconds",
    "memory",
    "prompt_tokens",
    "generated_tokens",
    "tokens_written",
    "address",
    "error",
)
_PLAIN = ("method", "route", "status")  # that need no names
PACKAGE = "deltamem_mlx.serve"


def _fields(record: logging.LogRecord) -> dict[str, object]:
    """What a line says beside its time and level."""
    # Other packages' messages may quote a request.
    ours = record.name.startswith(PACKAGE)
    found: dict[str, object] = {
        "event": record.getMessage() if ours else f"{record.name}: message left out"
    }
    if record.exc_info and record.exc_info[0]:
        found["error"] = record.exc_info[0].__name__
    return found | {name: getattr(record, name) for name in _EXTRA if hasattr(record, name)}


class JsonLines(logging.Formatter):
    """A record as JSON: time, level, event, and the fields that are known to hold no text."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        return json.dumps(line | _fields(record))


class TextLines(logging.Formatter):
    """The same for people: the local time, what happened, and the fields by name."""

    def format(self, record: logging.LogRecord) -> str:
        fields = _fields(record)
        said = [time.strftime("%H:%M:%S", time.localtime(record.created))]
        if record.levelno >= logging.WARNING:
            said.append(f"{record.levelname.lower()}:")
        said.append(str(fields.pop("event")))
        said += [str(fields.pop(name)) for name in _PLAIN if name in fields]
        return " ".join([*said, *(f"{name}={value}" for name, value in fields.items())])


def set_up(level: int, *, as_json: bool) -> None:
    """Send the server's log lines to stderr, and no other package's below warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines() if as_json else TextLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(PACKAGE).setLevel(level)
