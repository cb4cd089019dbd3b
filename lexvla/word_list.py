"""Lists of words as vocabularies: the one that ships with the package, or a user's file."""

from __future__ import annotations

from pathlib import Path

from lexvla.errors import ModelError
from lexvla.text_normalisation import normalise_text
from lexvla.vocabulary import WORD_START, Vocabulary

__all__ = ["COMMON_WORDS", "MOST_WORDS", "read_words"]

COMMON_WORDS = Path(__file__).parent / "common_words.txt"
MOST_WORDS = 100_000
_LONGEST = 80  # characters of a word or phrase


def read_words(path: str | Path | None = None) -> Vocabulary:
    """Read a word or phrase a line, in UTF-8; by default the common English words that ship.

    Spaces within a phrase become word-start marks, which `Vocabulary.word` shows as spaces.

    Raises:
        ModelError: The file cannot be read, or has no words, too many, or one twice.
    """
    path = Path(path or COMMON_WORDS)
    lines: dict[str, int] = {}
    try:
        with path.open(encoding="utf-8-sig") as file:
            for number, line in enumerate(file, start=1):
                word = " ".join(normalise_text(line[: _LONGEST + 2]).split())
                if not word:
                    continue
                if len(word) > _LONGEST:
                    raise _refused(path, number, f"is longer than {_LONGEST} characters")
                if word in lines:
                    raise _refused(path, number, f"{word!r} is already in line {lines[word]}")
                if len(lines) == MOST_WORDS:
                    raise _refused(path, number, f"a vocabulary holds at most {MOST_WORDS:,} words")
                lines[word] = number
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise ModelError(f"vocabulary {path}: cannot be read ({reason})") from error
    if not lines:
        raise ModelError(f"vocabulary {path}: holds no words")
    return Vocabulary(word.replace(" ", WORD_START) for word in lines)


def _refused(path: Path, number: int, rule: str) -> ModelError:
    return ModelError(f"vocabulary {path}, line {number}: {rule}")
