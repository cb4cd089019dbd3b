"""Search a table of products, and write what was found, and why, as a web page.

    python shop.py products.csv "red shoes" "price < 50"

The table has the columns sku, title, image (a path), price, category and added (a date).
"""

import sys
from html import escape
from pathlib import Path

import pandas as pd

from lexvla import LexVLA
from lexvla_indexer import Document, open_index
from lexvla_search import Query, Searcher

FIELDS = ["price", "category", "added"]
FACETS = ["category", {"field": "price", "ranges": [[None, 50], [50, 100], [100, None]]}]


def fill(index, products, model):
    """Put a DataFrame of products into an index."""
    known = products.astype(object).where(products.notna(), None)  # None is absent; NaN is refused
    documents = [
        Document(row["sku"], row["image"], row["title"], {name: row[name] for name in FIELDS})
        for row in known.to_dict("records")  # not iterrows(), whose rows have NaN for None
    ]
    index.add(documents, model.encode_image(list(products["image"])))
    index.commit()


def report(hits, model):
    """Return the hits as a page, each with its picture and the words that found it."""
    parts = [
        f"<h2>{escape(hit.label)}</h2>" + hit.explanation.to_html(hit.document.uri, model)
        for hit in hits
    ]
    return "<!doctype html><meta charset=utf-8><title>Found</title>" + "".join(parts)


def main(table, text, chosen=None, folder=".", model=None):
    """Index the table, print hits and facets for a text, and write report.html."""
    model = model or LexVLA.from_pretrained()
    address = Path(folder) / "products.lex"
    with open_index(address, create=True, vocabulary=model.vocabulary, model=model.name) as index:
        fill(index, pd.read_csv(table, parse_dates=["added"]), model)
        query = Query(text=text, filter=chosen, k=5, facets=FACETS)
        answer = Searcher(model, index).answer(query, explain=True)
    for hit in answer.hits:
        print(hit, hit.document.metadata)
    for field, counts in answer.facets.items():
        print(field, counts.to_dict())
    (Path(folder) / "report.html").write_text(report(answer.hits, model), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
