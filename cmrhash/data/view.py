"""View: one side of a data set, its images or its texts of one language, and the names of its files."""

from __future__ import annotations

from collections.abc import Iterable
from typing import ClassVar

_TEXT = "text-"


class View(str):
    """The images ("image") or the texts of one language ("text-de") of a data set.

    A view is the string that names its files, arrays and heads, so it is equal to that string and can be its key.
    """

    __slots__ = ()
    IMAGE: ClassVar[View]

    def __new__(cls, name: str) -> View:
        """Raises ValueError for any other name."""
        if name != "image" and not (name.startswith(_TEXT) and name != _TEXT):
            raise ValueError(f"{name!r} is no view")
        return super().__new__(cls, name)

    @classmethod
    def text(cls, lang: str) -> View:
        """The texts of a language."""
        return cls(_TEXT + lang)

    @classmethod
    def named(cls, short: str) -> View:
        """The view that users call "image", or by its language."""
        return cls.IMAGE if short == "image" else cls.text(short)

    @property
    def lang(self) -> str | None:
        """Language of the texts, None for images."""
        return None if self.is_image else self.removeprefix(_TEXT)

    @property
    def is_image(self) -> bool:
        """Whether these are the images."""
        return self == "image"

    @property
    def kind(self) -> str:
        """ "image" or "text"."""
        return "image" if self.is_image else "text"

    @property
    def short(self) -> str:
        """What users and methods call it: "image", or the language."""
        return self.removeprefix(_TEXT)

    def feature_file(self, encoder: str) -> str:
        """Name of its feature file by an encoder."""
        return f"{self}-{encoder}.h5"

    def encoder_of(self, file: str) -> str:
        """Name of the encoder in the name of one of its feature files."""
        return file.removeprefix(f"{self}-").removesuffix(".h5")

    @property
    def index_file(self) -> str:
        """Name of its Faiss index in a run's folder."""
        return f"{self}.faiss"

    def __repr__(self) -> str:
        return f"View({str(self)!r})"


View.IMAGE = View("image")


def languages_of(views: Iterable[View]) -> list[str]:
    """The languages of the text views among some, sorted."""
    return sorted(view.lang for view in views if view.lang is not None)
