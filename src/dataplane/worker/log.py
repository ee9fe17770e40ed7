"""The worker's log: one JSON object a line on stderr, for people and collectors on the customer's side.

A failure's text may quote a row that a server refused; it stays on the node. Nothing here is ever sent up.
"""

import json
import logging
import sys
import time

TEXT_CHARACTERS_MAX = 8_000


class JsonLines(logging.Formatter):
    """Formats a record as one line of JSON."""

    def __init__(self, fields: dict[str, object]) -> None:
        """Every line carries `fields`."""
        super().__init__()
        self._fields = fields

    def format(self, record: logging.LogRecord) -> str:
        """Return the line."""
        line: dict[str, object] = {
            "at": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)) + f".{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage()[:TEXT_CHARACTERS_MAX],
            **self._fields,
        }
        line.update({name: getattr(record, name) for name in ("code", "failure", "phase") if hasattr(record, name)})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)[-TEXT_CHARACTERS_MAX:]
        return json.dumps(line, default=str)


def configure(fields: dict[str, object], level: int = logging.INFO) -> None:
    """Send everything that is logged in this process to stderr as JSON lines that carry `fields`."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(fields))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level)
