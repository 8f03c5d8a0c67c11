"""The server's log: lines for people or JSON, a file that rotates, a console of any encoding. No prompt is in it."""

import datetime as dt
import json
import logging
import logging.handlers
from collections.abc import Mapping
from pathlib import Path
from typing import Final, TextIO

LINE: Final = "%(asctime)s %(levelname)s %(name)s: %(message)s"
FILE_BYTES: Final = 10 << 20
FILES_KEPT: Final = 5
QUIET: Final[Mapping[str, int]] = {
    "asyncio": logging.WARNING,
    "filelock": logging.WARNING,
    "httpcore": logging.WARNING,
    "httpx": logging.WARNING,
    "huggingface_hub": logging.WARNING,
    "torch": logging.WARNING,
    "transformers": logging.WARNING,
    "urllib3": logging.WARNING,
    "uvicorn": logging.WARNING,
}
"""Third parties, and the least level at which they are heard."""


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, logger, message, and for an exception its traceback."""

    def format(self, record: logging.LogRecord) -> str:
        when = dt.datetime.fromtimestamp(record.created, dt.UTC)
        document = {
            "time": when.isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if record.exc_info:
            document["traceback"] = self.formatException(record.exc_info)
        return json.dumps(document)


def make_handlers(console: TextIO, file: Path | None, *, as_json: bool) -> tuple[list[logging.Handler], str | None]:
    """Return where the log goes, and what is to be said about it: a file that can't be written is no reason to stop.

    Args:
        console: Characters that its encoding hasn't (cp949) are written as escapes.
        file: Rotates at 10 MiB, five old ones are kept; None for none.
        as_json: JSON lines instead of plain ones, in both places.
    """
    reconfigure = getattr(console, "reconfigure", None)
    if reconfigure is not None:
        reconfigure(errors="backslashreplace")
    handlers: list[logging.Handler] = [logging.StreamHandler(console)]
    problem = None
    if file is not None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            handlers.append(
                logging.handlers.RotatingFileHandler(
                    file, maxBytes=FILE_BYTES, backupCount=FILES_KEPT, encoding="utf-8", errors="backslashreplace"
                )
            )
        except OSError as error:
            problem = f"no log file: {file}: {error.strerror}"
    formatter = JsonFormatter() if as_json else logging.Formatter(LINE)
    for handler in handlers:
        handler.setFormatter(formatter)
    return handlers, problem


def quiet_third_parties(level: int) -> None:
    """Have libraries say what matters only; at debug level they may talk."""
    for name, least in QUIET.items():
        logging.getLogger(name).setLevel(max(level, least) if level > logging.DEBUG else logging.INFO)
