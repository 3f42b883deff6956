"""How log lines look: sentences on a terminal, one JSON object a line elsewhere."""

import json
import logging
import sys
from datetime import UTC, datetime

ABOUT = ("model", "version", "window", "run", "event")  # what a call may say by `extra`


class JsonLines(logging.Formatter):
    """A record as one line of JSON: time (UTC), level, logger, message, and what it is about."""

    def format(self, record: logging.LogRecord) -> str:
        line = {"time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
                "level": record.levelname, "logger": record.name, "message": record.getMessage()}
        line |= {name: value for name in ABOUT if (value := getattr(record, name, None))}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str, ensure_ascii=False)


def set_up() -> None:
    """Have Perennial's log lines written to standard error."""
    handler = logging.StreamHandler()
    if not sys.stderr.isatty():
        handler.setFormatter(JsonLines())
    logger = logging.getLogger("perennial")
    logger.setLevel(logging.INFO)
    logger.handlers = [handler]
    logger.propagate = False  # Prefect's handler on the root would print everything again
