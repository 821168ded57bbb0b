"""The live progress line; on a file or a pipe, a plain line now and then."""

import sys
import time
from types import TracebackType
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    from rich.console import RenderableType

PLAIN_INTERVAL_S = 10.0
LIVE_INTERVAL_S = 0.2


class Progress:
    """Callable given to long work: ``progress(what, done, total, detail)``. Writes to standard error."""

    def __init__(self) -> None:
        self._live = sys.stderr.isatty()
        self._shown_at = 0.0
        self._what = ""
        self._started_at = 0.0
        self._first_done = 0  # above 0 where earlier work is resumed
        self._done = 0

    def __call__(self, what: str, done: int, total: int, detail: str = "") -> None:
        """Shows that ``done`` of ``total`` is done, with the time left at the pace since the first call.

        Another ``what``, or a ``done`` that falls back, starts anew.
        """
        now = time.monotonic()
        new = what != self._what or done < self._done
        if new:
            self._end_line()
            self._what, self._started_at, self._first_done = what, now, done
        self._done = done
        interval = LIVE_INTERVAL_S if self._live else PLAIN_INTERVAL_S
        if not new and done < total and now - self._shown_at < interval:
            return
        self._shown_at = now
        elapsed_s = now - self._started_at
        line = f"{what}: {done}/{total} in {_clock(elapsed_s)}{self._left(elapsed_s, total)}"
        line += f"{', ' if detail else ''}{detail}"
        print(
            f"\r\033[K{line}" if self._live else line,
            end="" if self._live else "\n",
            file=sys.stderr,
            flush=True,
        )

    def _left(self, elapsed_s: float, total: int) -> str:
        made = self._done - self._first_done
        if made <= 0 or self._done >= total or elapsed_s <= 1:
            return ""
        return f", {_clock(elapsed_s / made * (total - self._done))} left"

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._end_line()

    def _end_line(self) -> None:
        if self._live and self._what:
            print(file=sys.stderr)


def show(renderable: "RenderableType") -> None:
    """Prints a rich table or text to standard output."""
    from rich.console import Console

    Console().print(renderable)


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
