"""The commands that README.md and docs/ show: they parse, and those of the first steps run."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from string import Template

import pytest

from lexvla.data.demo_corpus import load_demo_corpus
from lexvla_search import cli
from source_tree import PYTHONPATH, ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
# What a page's first steps need beside LexVLA: the network, a server, Java, or a long time.
ELSEWHERE = re.compile(
    r"^(pip|make|curl|lexvla (demo|serve)\b)|lucene:|lexvla_search\.pyserini|\brun\.trec"
)


def console_blocks(page: Path) -> list[str]:
    return re.findall(r"^```console\n(.*?)^```", page.read_text("utf-8"), re.M | re.S)


def lexvla_lines(page: Path) -> Iterator[str]:
    """Yield the page's `lexvla` commands, with the shell variables that it sets."""
    set_here: dict[str, str] = {}
    for block in console_blocks(page):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.fullmatch(r"([A-Z])=(.*)", line):
                set_here[found[1]] = found[2].strip('"')
            command = line.removeprefix("$ ")
            if command.startswith("lexvla "):
                yield Template(command).safe_substitute(set_here)


@pytest.mark.parametrize(
    "line",
    [
        pytest.param(line, id=f"{page.name}: {line}")
        for page in PAGES
        for line in lexvla_lines(page)
    ],
)
def test_every_command_of_the_docs_parses(line: str) -> None:
    arguments = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    command, _ = cli.parse([word for word in arguments if word != "..."])
    assert command.__name__ == f"lexvla_search.cli.{arguments[0].replace('-', '_')}"


def steps(page: Path) -> Iterator[tuple[str, str]]:
    """Yield the commands of a page's console blocks, each with the output that is shown."""
    for block in console_blocks(page):
        if "$ " not in block:
            lines = block.splitlines(keepends=True)
            yield "".join(line for line in lines if not ELSEWHERE.search(line)), ""
            continue
        for command, shown in re.findall(r"^\$ ((?:.*\\\n)*.*\n)((?:(?!\$ ).*\n)*)", block, re.M):
            if not ELSEWHERE.search(command):
                yield command, shown


def shape(output: str) -> list[str]:
    """Return the lines of an output without its figures, paths and words, which may change."""
    text = re.sub(r"/\S+( \S+)*", "PATH", output)  # one with spaces too
    text = re.sub(r"\d+(\.\d+|%)", "N", text)
    text = re.sub(r"(  (\w+|\+\d+ more) N)+", "  WORDS", text)
    text = re.sub(r"photo-[a-z]+", "photo", text)
    return [re.sub(" +", " ", line) for line in text.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "page",
    ["README.md", "docs/quickstart-application.md", "docs/quickstart-researcher.md"],
)
def test_the_first_steps_print_what_the_page_shows(page: str, tmp_path: Path) -> None:
    images = tmp_path / ".cache" / "lexvla" / "demo.lex.images" / "images"
    images.mkdir(parents=True)
    for item in load_demo_corpus("photographs"):
        (images / f"{item.id}.jpg").write_bytes(item.data)
    environment = {**os.environ, "PYTHONPATH": PYTHONPATH, "HOME": str(tmp_path)}
    lexvla = f'lexvla() {{ "{sys.executable}" -m lexvla_search "$@"; }}; set -e\n'
    compared = 0
    for command, shown in steps(ROOT / page):
        done = subprocess.run(
            ["bash", "-c", lexvla + command],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}{done.stderr}"
        if shown:
            assert shape(done.stdout) == shape(shown), command
            compared += 1
    assert compared >= 1
