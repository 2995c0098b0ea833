"""View: one side of a data set, its images or its texts in one language.

It also gives the names of the side's files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import ClassVar

_TEXT, _WORDS = "text-", "words-"


class View(str):
    """The images ("image") or the texts in one language ("text-de") of a data set.

    A view is a string, the name of its files, arrays and heads; it equals that string and can be used as its key.
    """

    __slots__ = ()
    IMAGE: ClassVar[View]
    ANY_TEXT: ClassVar[View]  # a glob pattern, for any language; `Path.glob` takes no subclass of str: use str(...)

    def __new__(cls, name: str) -> View:
        """Raises ValueError unless the name is "image" or "text-LANG"."""
        if name != "image" and not (name.startswith(_TEXT) and name != _TEXT):
            raise ValueError(f"{name!r} is no view")
        return super().__new__(cls, name)

    @classmethod
    def text(cls, lang: str) -> View:
        """View of the texts in a language."""
        return cls(_TEXT + lang)

    @classmethod
    def named(cls, short: str) -> View:
        """View by its short name: "image", or a language."""
        return cls.IMAGE if short == "image" else cls.text(short)

    @property
    def lang(self) -> str | None:
        """Language of the texts; None for images."""
        return None if self.is_image else self.removeprefix(_TEXT)

    @property
    def is_image(self) -> bool:
        """Whether this is the view of the images."""
        return self == "image"

    @property
    def kind(self) -> str:
        """Kind of the view, "image" or "text"."""
        return "image" if self.is_image else "text"

    @property
    def short(self) -> str:
        """Short name for users and methods: "image", or the language."""
        return self.removeprefix(_TEXT)

    def feature_file(self, encoder: str) -> str:
        """Name of its feature file for an encoder."""
        return f"{self}-{encoder}.h5"

    def encoder_of(self, file: str) -> str:
        """Encoder's name in the name of one of its feature files."""
        return file.removeprefix(f"{self}-").removesuffix(".h5")

    @property
    def index_file(self) -> str:
        """Name of its Faiss index in the folder of a run."""
        return f"{self}.faiss"

    def __repr__(self) -> str:
        return f"View({str(self)!r})"


View.IMAGE = View("image")
View.ANY_TEXT = View.text("*")


def words_file(feature_file: str) -> str:
    """Name of the file with the words of a text feature file."""
    return feature_file.replace(_TEXT, _WORDS, 1)


def features_of_words(name: str) -> str:
    """Name of the feature file that a file of words belongs to; of any other file, its own name."""
    return name.replace(_WORDS, _TEXT, 1) if name.startswith(_WORDS) else name


def languages_of(views: Iterable[View]) -> list[str]:
    """Sorted languages of the text views."""
    return sorted(view.lang for view in views if view.lang is not None)


def by_language(options: Sequence[str]) -> dict[str, str]:
    """Parse "[LANG=]DIR" options into {LANG: DIR}; LANG is "" for all languages."""
    parts = [re.fullmatch(r"(?:([A-Za-z0-9_-]+)=)?(.+)", option, re.S) for option in options]
    return {match[1] or "": match[2] for match in parts if match}
