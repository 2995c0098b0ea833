"""Address under which a proxy offers the page."""

from __future__ import annotations

from dataclasses import dataclass
from urllib.parse import urlsplit

from cmrhash.errors import UsageError


@dataclass(frozen=True)
class PublicUrl:
    """Parts of a public address. netloc: host and port as browsers send them; prefix: path without a last slash."""

    scheme: str
    netloc: str
    host: str
    prefix: str

    def __str__(self) -> str:
        return f"{self.scheme}://{self.netloc}{self.prefix}"


def public_url(given: str | None) -> PublicUrl | None:
    """Parse the option ``public_url``; raises UsageError for anything but http(s)://HOST[:PORT][/PATH]."""
    if given is None:
        return None
    try:
        parts = urlsplit(given.strip())
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    odd = parts.query or parts.fragment or parts.username or parts.password or "//" in parts.path
    if parts.scheme not in ("http", "https") or not host or odd or any(c in given for c in "\\\"'<> \t\n"):
        what = f"'{given}' is not the address of a page"
        raise UsageError(what, None, "give one such as https://example.org/photos", option="public_url")
    name = f"[{host}]" if ":" in host else host
    usual = {"http": 80, "https": 443}[parts.scheme]
    netloc = name if port in (None, usual) else f"{name}:{port}"
    return PublicUrl(parts.scheme, netloc, host, parts.path.rstrip("/"))
