"""Requests to the page, and HTML as a browser sees it."""

from html.parser import HTMLParser

BASE = "http://127.0.0.1:8000"
QUICK = {"epochs": 1, "batch": 16, "hidden": 8, "bits": 16, "device": "cpu"}


def photo(made, n):
    """Bytes of a photo of the data set in a folder."""
    return (made / f"mine/images/{n}.jpg").read_bytes()


def upload(content, name="photo.jpg", **fields):
    """Options of a POST that sends a photo."""
    return {"files": {"photo": (name, content, "image/jpeg")}, "data": fields}


def form(content, name="photo.jpg", **fields):
    """Options of a POST that sends the search form with a photo."""
    return {"files": {"file": (name, content, "image/jpeg")}, "data": fields}


class Seen(HTMLParser):
    """Elements of a document in their order, (tag, attributes), and its words."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.words = [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.words.append(data)

    def all(self, tag, **wanted):
        return [attrs for t, attrs in self.elements if t == tag and wanted.items() <= attrs.items()]
