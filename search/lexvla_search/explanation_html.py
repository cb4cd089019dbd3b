"""An explanation as HTML: the table of its parts, and the image with where words were read."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Sequence
from html import escape

from PIL import Image

__all__ = ["explanation_html"]

_STYLE = """
.lexvla { font: 14px/1.5 system-ui, sans-serif; display: flex; flex-wrap: wrap; gap: 1.2em;
  align-items: flex-start; margin: 1em 0; }
.lexvla img { max-width: min(24em, 100%); max-height: 24em; border-radius: .4em; }
.lexvla table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
.lexvla caption, .lexvla th { text-align: left; font-weight: 600; }
.lexvla th[scope=row] { font-weight: 400; max-width: 22em; overflow-wrap: anywhere; }
.lexvla td, .lexvla th { padding: .1em 1em .1em 0; vertical-align: middle; }
.lexvla td { text-align: right; }
.lexvla td:last-child { text-align: left; width: 10em; padding: 0; }
.lexvla i { display: block; height: .7em; min-width: 1px; border-radius: .2em;
  background: #d65a1e; }
.lexvla .leg i { background: #608cbe; }
.lexvla tfoot th, .lexvla tfoot td { border-top: 1px solid #8886; font-weight: 600; }
"""


def explanation_html(
    words: Sequence[tuple[str, float]],
    legs: Sequence[tuple[str, float]],
    total: float,
    image: Image.Image | None = None,
) -> str:
    """Return a table of what each word and leg adds to a total, beside the image, if given."""
    longest = max((abs(part) for _, part in (*words, *legs)), default=0.0) or 1.0
    rows = "".join((*_rows(words, longest, "word"), *_rows(legs, longest, "leg")))
    shown = "" if image is None else f'<img src="{_data_url(image)}" alt="">'
    return f"""<figure class="lexvla"><style>{_STYLE}</style>{shown}
<table><thead><tr><th scope="col">found by</th><th scope="col">adds</th><th></th></tr></thead>
<tbody>{rows}</tbody>
<tfoot><tr><th scope="row">score</th><td>{total:.4f}</td><td></td></tr></tfoot></table>
</figure>
"""


def _rows(parts: Iterable[tuple[str, float]], longest: float, kind: str) -> Iterable[str]:
    for name, part in parts:
        bar = f'<i style="width:{100 * abs(part) / longest:.1f}%"></i>'
        yield (
            f'<tr class="{kind}"><th scope="row">{escape(name)}</th><td>{part:.4f}</td>'
            f"<td>{bar}</td></tr>\n"
        )


def _data_url(image: Image.Image) -> str:
    data = io.BytesIO()
    image.save(data, "JPEG", quality=88)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
