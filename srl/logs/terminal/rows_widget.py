"""A list of a million rows for the browser: only the rows on the screen are ever made.

textual's DataTable holds every cell of every row, which for a long log takes minutes and gigabytes.
This list knows how many rows there are and asks for the text of those that are shown.
"""

from __future__ import annotations

from collections.abc import Callable

from rich.text import Text
from textual.binding import Binding
from textual.events import Click
from textual.geometry import Region, Size
from textual.message import Message
from textual.reactive import reactive
from textual.scroll_view import ScrollView
from textual.strip import Strip

Draw = Callable[[int], Text]


class Rows(ScrollView, can_focus=True):
    """A list with a cursor; posts `Moved` when the cursor comes to stand on another row."""

    DEFAULT_CSS = """
    Rows { height: 1fr; overflow-x: hidden; }
    """
    BINDINGS = [  # noqa: RUF012  textual's own way
        Binding("up,k", "move(-1)", "Up", show=False),
        Binding("down,j", "move(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home,g", "jump(0)", "First", show=False),
        Binding("end,G", "jump(-1)", "Last", show=False),
    ]
    cursor: reactive[int] = reactive(0)

    class Moved(Message):
        """The cursor stands on another row."""

        def __init__(self, rows: Rows, row: int) -> None:
            super().__init__()
            self.rows, self.row = rows, row

        @property
        def control(self) -> Rows:
            return self.rows

    def __init__(self, id: str) -> None:
        super().__init__(id=id)
        self.count = 0
        self._draw: Draw = lambda row: Text()

    def fill(self, count: int, draw: Draw, *, cursor: int = 0) -> None:
        """Other rows: how many, and what each of them says."""
        self.count, self._draw = count, draw
        self.virtual_size = Size(self.size.width, count)
        self.cursor = max(0, min(cursor, count - 1))
        self._show_cursor()
        self.refresh()
        if count:
            self.post_message(self.Moved(self, self.cursor))

    def action_move(self, by: int) -> None:
        self._go(self.cursor + by)

    def action_page(self, by: int) -> None:
        self._go(self.cursor + by * max(1, self.size.height - 1))

    def action_jump(self, row: int) -> None:
        self._go(row if row >= 0 else self.count - 1)

    def on_click(self, event: Click) -> None:
        self._go(event.y + self.scroll_offset.y)

    def _go(self, row: int) -> None:
        row = max(0, min(row, self.count - 1))
        if self.count and row != self.cursor:
            self.cursor = row
            self._show_cursor()
            self.post_message(self.Moved(self, row))

    def _show_cursor(self) -> None:
        self.scroll_to_region(Region(0, self.cursor, 1, 1), animate=False, force=True)

    def watch_cursor(self) -> None:
        self.refresh()

    def render_line(self, y: int) -> Strip:
        row = y + self.scroll_offset.y
        width = self.size.width
        if not 0 <= row < self.count:
            return Strip.blank(width, self.rich_style)
        text = self._draw(row)
        text.end = ""
        text.truncate(width, overflow="crop", pad=True)
        if row == self.cursor:
            text.stylize("reverse" if self.has_focus else "bold")
        return Strip(text.render(self.app.console), width).apply_style(self.rich_style)
