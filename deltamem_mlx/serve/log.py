"""Log lines: one JSON object each, of numbers and names, never of what users say."""

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
PACKAGE = "deltamem_mlx.serve"


class JsonLines(logging.Formatter):
    """A record as JSON: time, level, event, and the fields that are known to hold no text."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line = {"time": f"{stamp}.{int(record.msecs):03d}Z", "level": record.levelname.lower()}
        # Other packages' messages may quote a request.
        ours = record.name.startswith(PACKAGE)
        line["event"] = record.getMessage() if ours else f"{record.name}: message left out"
        if record.exc_info and record.exc_info[0]:
            line["error"] = record.exc_info[0].__name__
        line |= {name: getattr(record, name) for name in _EXTRA if hasattr(record, name)}
        return json.dumps(line)


def set_up(level: int = logging.INFO) -> None:
    """Send the server's log lines to stderr, and no other package's below warnings."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger(PACKAGE).setLevel(level)
