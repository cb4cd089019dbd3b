"""Tables, goals and the plot of the results of `engines.py`."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from engine_checks import exponent

MIB = 2**20
OURS = "embedded, exact"
ALONE = "Lucene, engine alone"
TITLES = {
    "million": "Documents of 125 words",
    "shape": "LexVLA's shape: documents and queries of 300 words",
    "model": "Vectors of the default model",
    "model-million": "A million vectors of the default model",
    "growth": "Growth",
}
LEAST_OWN = 150 * 10**6  # bytes that an open index may have besides what queries map
FEWEST_FITTED = 100_000  # from so many documents on, the time of Python itself is small

TRIED = """\
Medians of alternated rounds of 50 queries, old and new loops in one process, by scripts that are
not kept here; all answers were equal. The rows "without skipping" above come from the command.

- **Taken, 2026-11-27**: peaks of 16 rows for words in 3 % of a block or more, spans of 8,192 rows;
  frequent words as bits that vector instructions spread.
- **Taken, 2026-11-28**, as parts of the time before, 20 and 150 of 125 words on a million: rows of
  short queries added by spans, where they stay in the nearest cache, and the first 32,768 rows
  scored whole for a floor (0.88 by 20 words); frequent words in fours, and the places of their
  impacts counted from the bits (0.93 by 150); a word's place among those of a block bounded by how
  many are missing (0.90 and 0.95); columns and weights of a row in one file (0.5 to 0.6 of the time
  of scoring rows again). Whole searches gain less: a part of each lies around the loops.
- **Large pages**: files written 4 MiB at a time are mapped in pages of 2 MiB while they stay in
  memory. Whether that is faster changes from run to run, as does where the memory lies.
- **A floor from the frequent words alone**, by the 64 groups of the highest bounds: 0.2 to 0.4 of
  the k-th best score for the default model's vectors, where one from the other words' lists is 0.85
  to 0.97; neither is used.
- **Bounds of a block at once, and asking for the bits of all pieces before any is added**: the same
  time.
- **Lists by spans for long queries**: 1.2 times as long for images of 44 words and for 300 words.
- **Longer groups**, in a first prototype on 200,000 rows made from 400 views: with 16, 32 and 64
  rows, 1.3, 5.1 and 15.6 % of the groups were left, and texts took 0.88, 1.12 and 2.18 of the time.
- **Peaks for words in 1.5 % of the rows or more**: three times the bytes, the same time.
- **The bounds of all rows first**, then the most promising rows, then the others: 0.76 of the time
  by texts and 0.86 by labels, where one pass in spans, in a prototype too, took 0.43 and 0.40.
- **Frequent words as dense bytes**: not built. 224 words are in 3 % of the views or more, 8 of them
  in 12 %: a byte a row and word would be 224 bytes where postings take 35.

Documents made from views are like encoded ones, 8,000 of each (`real_vectors.py`): 38.6 words a row
for 38.7; words in 6 % of the rows or more have 13.2 % of all postings for 14.2 %; and with the last
threshold known, texts need 3.6 % of the groups of 16 rows for 3.2 %, labels 4.7 for 5.2, images
10.8 for 8.8.
"""

Figures = dict[str, Any]


class Aim(NamedTuple):
    """A goal, and whether it was reached."""

    text: str
    found: float
    wanted: str
    met: bool


def at_most(text: str, found: float, wanted: float) -> Aim:
    """Return the goal of a maximum."""
    return Aim(text, found, f"at most {wanted:.3g}", found <= wanted)


def at_least(text: str, found: float, wanted: float) -> Aim:
    """Return the goal of a minimum."""
    return Aim(text, found, f"at least {wanted:,.0f}", found >= wanted)


def aims(part: str, figures: Figures) -> list[Aim]:
    """Return the goals of a part's figures."""
    if part == "growth":
        return list(_aims_of_growth(figures))
    found = list(_aims_of_searching(figures)) if part == "million" else []
    build, fresh = figures["builds"]["embedded"], figures["fresh"]
    limit = fresh["mapped_bytes"] + LEAST_OWN
    if part == "million":
        found.append(at_least("build, documents a second", build["documents_a_second"], 1e5))
    found.append(at_most("open in a fresh process, s", fresh["open_s"], 0.2))
    added = fresh["resident"] - fresh["resident_before"]
    found.append(at_most("memory it adds, of what queries map and 150 MB", added / limit, 1))
    return found


def _aims_of_searching(figures: Figures) -> Iterator[Aim]:
    goals = {
        20: {ALONE: 1 / 4, "Lucene, LuceneImpactSearcher": 1 / 12},
        150: {ALONE: 1 / 8},
    }
    for race in figures["races"]:
        times = {row["engine"]: row["p50_ms"] for row in race["engines"]}
        if ALONE in times:
            times[ALONE] = min(time for name, time in times.items() if name.startswith(ALONE))
        for other, wanted in goals.get(round(race["words"]), {}).items():
            if other in times:
                text = f"{race['words']:.0f} words: time of {OURS} / {other}"
                yield at_most(text, times[OURS] / times[other], wanted)


def _aims_of_growth(figures: Figures) -> Iterator[Aim]:
    for words, rows in _by_words(figures).items():
        large = [row["times_floor"] for row in rows if row["documents"] >= FEWEST_FITTED]
        if large:
            text = f"{words} words: the most times the floor, from {FEWEST_FITTED:,} documents on"
            yield at_most(text, max(large), 3)
        times = {row["documents"]: row["p50_ms"] for row in rows}
        if {1_000_000, 10_000_000} <= times.keys():
            ratio = times[10_000_000] / times[1_000_000]
            yield at_most(f"{words} words: time at 10 million / at a million", ratio, 12)


def lines_of(part: str, figures: Figures) -> Iterator[str]:
    """Yield a part's tables as Markdown."""
    if part == "growth":
        yield from _growth(figures)
    else:
        yield from _comparison(figures)
    found = aims(part, figures)
    yield from ("", "| aim | found | wanted | |", "|---|--:|--:|---|")
    for aim in found:
        shown = f"{aim.found:,.0f}" if aim.found >= 1000 else f"{aim.found:.3g}"
        if shown == aim.wanted.split()[-1]:
            shown = f"{aim.found:.4g}"  # a near miss must not read as if it were met
        yield f"| {aim.text} | {shown} | {aim.wanted} | {'met' if aim.met else '**missed**'} |"


def _comparison(figures: Figures) -> Iterator[str]:
    shape = "{documents:,} documents of {words:.0f} words, {width:,} words in all"
    yield shape.format(**figures) + "."
    for race in figures["races"]:
        ours = next(row["p50_ms"] for row in race["engines"] if row["engine"] == OURS)
        yield ""
        asked = f"{race['words']:.0f} words"
        if race.get("kind"):
            asked = f"{race['kind']} of {asked}"
        yield f"| top 10 by {asked} | p50 ms | p95 ms | times ours | answers |"
        yield "|---|--:|--:|--:|---|"
        for row in race["engines"]:
            cells = f"{row['p50_ms']:.3f} | {row['p95_ms']:.3f} | {row['p50_ms'] / ours:.2f}"
            yield f"| {row['engine']} | {cells} | {_answers(row)} |"
        if "batch" in race:
            alone, together = race["batch"]["alone_ms"], race["batch"]["together_ms"]
            yield ""
            yield (
                f"100 queries together on all threads: {together:.3f} ms a query, "
                f"{alone / together:.2f} times as fast as one after another ({alone:.3f} ms)."
            )
    yield from (
        "",
        "| index | build, s | documents/s | merging, s | MiB |",
        "|---|--:|--:|--:|--:|",
    )
    for name, build in figures["builds"].items():
        size = f"{build['bytes'] / MIB:,.0f}" if "bytes" in build else "-"
        speed = figures["documents"] / build["build_s"]
        merging = f"{build['merge_s']:.1f}" if "merge_s" in build else "-"
        yield f"| {name} | {build['build_s']:.1f} | {speed:,.0f} | {merging} | {size} |"
    yield ""
    yield from _fresh(figures["fresh"])


def _answers(row: Figures) -> str:
    if row["equal"]:
        return f"all equal to brute force by {'floats' if row['truth'] == 'floats' else 'integers'}"
    return f"recall@10 {row['recall']:.3f}"


def _fresh(fresh: Figures) -> Iterator[str]:
    read = fresh["posting_bytes"], fresh["row_bytes"]
    yield (
        f"In a fresh process the index opens in {fresh['open_s'] * 1e3:.0f} ms, and the first of "
        f"{fresh['queries']} queries takes {fresh['first_ms']:.0f} ms, the median one "
        f"{fresh['p50_ms']:.2f} ms. After them the process has {fresh['resident'] / MIB:,.0f} MiB: "
        f"{fresh['resident_own'] / MIB:,.0f} of its own and "
        f"{fresh['resident_mapped'] / MIB:,.0f} of mapped files, programs included; it had "
        f"{fresh['resident_before'] / MIB:,.0f} before it opened the index. The words of the "
        f"queries have {read[0] / MIB:,.0f} MiB of postings, which short queries read in part; "
        f"{read[1] / MIB:,.0f} MiB of rows are read. For all of that Linux would map "
        f"{fresh['mapped_bytes'] / MIB:,.0f} MiB, in pieces of 64 KiB; "
        f"{fresh['rescored']:,.0f} rows a query are scored again."
        + (f" Measured by itself on {fresh['date']}." if "date" in fresh else "")
    )


def _growth(figures: Figures) -> Iterator[str]:
    yield f"One thread copies {figures['copy_gb_s']:.1f} GB/s from memory to memory."
    yield ""
    columns = ("documents", "words", "segments", "added/s", "p50 ms", "by integers", "postings")
    yield "| " + " | ".join((*columns, "floor ms", "times floor", "exact")) + " |"
    yield "|--:" * 9 + "|---|"
    for rows in _by_words(figures).values():
        for row in rows:
            cells = (
                f"{row['documents']:,}",
                str(row["words"]),
                str(row["segments"]),
                f"{row['documents_a_second']:,.0f}",
                f"{row['p50_ms']:.3f}",
                f"{row['p50_integers_ms']:.3f}",
                f"{row['postings']:,.0f}",
                f"{row['floor_ms']:.4f}",
                f"{row['times_floor']:.1f}",
                f"{row['checked']} of {row['checked']}",
            )
            yield "| " + " | ".join(cells) + " |"
    yield ""
    for words, rows in _by_words(figures).items():
        for least in (0, FEWEST_FITTED):
            fitted = [row for row in rows if row["documents"] >= least]
            if len(fitted) > 1:
                power = exponent(
                    *zip(*((r["documents"], r["p50_ms"]) for r in fitted), strict=True)
                )
                first = f"{fitted[0]['documents']:,}"
                yield f"{words} words, from {first} documents on: time grows as n^{power:.2f}."
                yield ""


def _by_words(figures: Figures) -> dict[int, list[Figures]]:
    found: dict[int, list[Figures]] = {}
    for row in figures["rows"]:
        found.setdefault(row["words"], []).append(row)
    return found


def plot(figures: Figures, path: Path) -> None:
    """Plot p50 over the number of documents, with the floor by memory speed."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 5))
    colours = ("#0072b2", "#d55e00", "#009e73")
    for (words, rows), colour in zip(_by_words(figures).items(), colours, strict=False):
        sizes = [row["documents"] for row in rows]
        for key, style, label in (
            ("p50_ms", "o-", "exact"),
            ("p50_integers_ms", "s--", "by integers"),
            ("floor_ms", ":", "floor: copying the postings"),
        ):
            values = [row[key] for row in rows]
            axes.loglog(sizes, values, style, color=colour, label=f"{words} words, {label}")
    axes.set_xlabel("documents")
    axes.set_ylabel("p50 of a query, ms")
    axes.grid(which="major", alpha=0.3)
    axes.legend(fontsize="small", ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.13))
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def report(records: Sequence[Figures], figure: str) -> Iterator[str]:
    """Yield the page of results of the records of parts, with the path of the plot."""
    yield "# The engines side by side"
    yield ""
    yield (
        "All engines of a table ran in one process on the same vectors and took turns, a round of "
        "all queries each, on one thread; top 10. Every answer was held against brute force before "
        "it was timed: **equal** means the same ids in the same order and the same scores, ties "
        "included; recall counts ties against. Engines of integers have the same 8-bit impacts. "
        "The **floor** of a query is the bytes of its words' postings over the bytes a second "
        "that one thread copies. Building starts from rows in memory, ids and metadata, and ends "
        "when all is on the disk, where an engine has one; scipy and Seismic stay in memory. "
        "Lucene's segments are merged into one before it is asked. **Lucene, engine alone** is "
        "`IndexSearcher.search(query, 10)`, with queries made beforehand in Java and hits that "
        "nobody reads; **without skipping**, the same scores every document that has a word of the "
        "query, which long queries gain by. Aims are held against the faster of the two."
    )
    for record in records:
        yield from ("", f"## {TITLES[record['part']]}", "")
        settings = ", ".join(f"{name} {value}" for name, value in record["settings"].items())
        took = f"{record['seconds'] / 60:.0f} minutes" + ("" if record["whole"] else ", cut short")
        yield f"{record['machine']}; {record['date']}; {took}; {settings}."
        yield ""
        yield from lines_of(record["part"], record["figures"])
        if record["part"] == "growth":
            yield f"![Time over documents]({figure})"
    yield from ("", "## Tried in the embedded engine", "", TRIED)


def write_report(records: Sequence[Figures], page: Path, figure: Path) -> None:
    """Write the Markdown page of results, and the plot if growth was measured."""
    relative = os.path.relpath(figure, page.parent)
    text = "\n".join(report(records, relative))
    page.write_text(text.rstrip() + "\n", encoding="utf-8")
    for record in records:
        if record["part"] == "growth":
            plot(record["figures"], figure)
