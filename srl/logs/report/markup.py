"""Makes HTML from untrusted values: text, numbers, tables.

A report gets names, settings and problems as they are in the log, and a model wrote some of them.
So every value goes through `text`: HTML is escaped, quotes included, and invisible characters
(controls, direction overrides, zero widths, lone surrogates) are spelt out.
"""

from __future__ import annotations

import base64
import hashlib
import html
import math
import re
from collections.abc import Iterable, Sequence
from importlib.resources import files

from srl.console import spelt
from srl.stats import Estimate

# Limit of characters. No name, setting or label is as long; whole rollouts do not pass here.
LONGEST = 2_000


class Raw(str):
    """HTML made by this program, which must not be escaped again."""


def text(value: object, *, most: int = LONGEST) -> Raw:
    """Returns `value` escaped for HTML, for use between tags or between quotes."""
    words = str(value)
    if len(words) > most:
        words = f"{words[:most]}… ({len(words):,} characters)"
    return Raw(html.escape(spelt(words), quote=True))


def number(value: float | None, *, share: bool = False) -> str:
    """Returns a figure as text, a share in per cent; a dash if there is none."""
    if value is None or not math.isfinite(value):
        return "–"
    size = abs(value)
    if share:
        shown = f"{100 * value:.1f}"
    elif isinstance(value, int):
        shown = f"{value:,}"
    elif size and size < 0.001:
        shown = f"{value:.2e}"
    else:
        shown = f"{value:,.{0 if size >= 99.95 else 1 if size >= 9.9995 else 3}f}"
    # "-0.000" becomes "0.000", and a minus sign replaces the hyphen.
    if re.fullmatch(r"-0\.?0*", shown):
        shown = shown[1:]
    return shown.replace("-", "−") + (" %" if share else "")


def with_interval(estimate: Estimate | None, *, share: bool = False) -> str:
    """Returns `46.6 % [42.5, 50.7]`, or the figure alone if it has no interval."""
    if estimate is None:
        return "–"
    shown = number(estimate.value, share=share)
    if not math.isfinite(estimate.low + estimate.high):
        return shown
    low, high = (number(v, share=share).removesuffix(" %") for v in (estimate.low, estimate.high))
    return f"{shown} [{low}, {high}]"


def points(gain: Estimate) -> str:
    """Returns a difference of shares as `+25.2 points [21.2, 29.2]`."""
    sign = "+" if gain.value > 0 else ""
    return sign + with_interval(gain, share=True).replace(" %", " points")


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Returns a table of words, figures and `Raw` pieces; the first column names the row."""
    titles = "".join(f'<th scope="col">{text(title)}</th>' for title in head)
    body = []
    for row in rows:
        first, *rest = (cell if isinstance(cell, Raw) else text(cell) for cell in row)
        cells = "".join(f"<td>{cell}</td>" for cell in rest)
        body.append(f'<tr><th scope="row">{first}</th>{cells}</tr>')
    return (
        f'<div class="scroll" tabindex="0"><table><thead><tr>{titles}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table></div>"
    )


def policy_of_page(style: str, script: str | None = None) -> str:
    """Returns a Content-Security-Policy that allows only the page's own style sheet and script."""
    kinds = {"style": style} if script is None else {"script": script, "style": style}
    own = "".join(
        f"{kind}-src 'sha256-{base64.b64encode(hashlib.sha256(part.encode()).digest()).decode()}'; "
        for kind, part in kinds.items()
    )
    return f"default-src 'none'; {own}base-uri 'none'; form-action 'none'"


def part_of_page(name: str) -> str:
    """Loads a file of the page: its frame, its style sheet or its script."""
    return (files("srl.logs.report") / "page" / name).read_text(encoding="utf-8")


def bare_page(title: str, body: str) -> str:
    """Returns a page that has no script and loads no other file; `body` is HTML."""
    style = part_of_page("page.css")
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{policy_of_page(style)}">'
        f"<title>{text(title)}</title><style>{style}</style></head><body><main>"
        f"<h1>{text(title)}</h1>{body}</main></body></html>"
    )
