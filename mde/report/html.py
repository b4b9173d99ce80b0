"""What every page is made of."""

import base64
import html
from collections.abc import Sequence
from typing import Any

from mde.names import utf8

STYLE = """
body{font:15px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem;color:#1c1c1e}
h1{font-size:1.5rem}h2{font-size:1.15rem;margin-top:2rem;border-bottom:1px solid #ddd}
table{border-collapse:collapse;font-variant-numeric:tabular-nums}
td,th{padding:.25rem .8rem;border-bottom:1px solid #e5e5e5;text-align:right}
td:first-child,th:first-child,.text{text-align:left}
p,h1{overflow-wrap:anywhere}tr.baseline td{color:#777}img{max-width:100%}
pre{background:#f6f6f6;padding:1rem;overflow-x:auto;font-size:13px}
td.layer{font-size:13px}td.bar{width:16rem}td.bar div{background:#4c78a8;height:.8rem}
.wide{overflow-x:auto;font-size:13px}.wide td,.wide th{padding:.25rem .5rem}
.note{color:#555}.bad{color:#b00020;font-weight:600}
"""


class Html(str):
    """A cell that is HTML already."""


def document(title: str, body: str, style: str = "") -> str:
    """The whole page; `title` is text, `body` HTML, `style` CSS beside STYLE."""
    return (
        "<!doctype html><html lang='en'><meta charset='utf-8'><meta name='viewport' content='width=device-width'>"
        f"<title>mde: {text(title)}</title><style>{STYLE}{style}</style><body>{body}</body></html>"
    )


def text(value: Any) -> str:
    """`value` as it reads, whatever characters are in it; a file's name may hold bytes that are none."""
    return html.escape(utf8(value))


def notes(lines: Sequence[str]) -> str:
    """Paragraphs in grey."""
    return "".join(f"<p class='note'>{text(line)}</p>" for line in lines)


def table(headings: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Cells are text, or Html."""
    head = "".join(f"<th>{text(heading)}</th>" for heading in headings)
    body = "".join(f"<tr>{''.join(f'<td>{_cell(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"


def wide(content: str) -> str:
    """`content` in small type, scrolled sideways where the window is narrower."""
    return f"<div class='wide'>{content}</div>"


def image(png: bytes, name: str) -> str:
    """The picture inside the page."""
    return f"<img alt='{text(name)}' src='data:image/png;base64,{base64.b64encode(png).decode()}'>"


def _cell(cell: str) -> str:
    return cell if isinstance(cell, Html) else text(cell)
