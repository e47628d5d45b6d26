"""`attachments`: what a program may name over HTTP instead of sending it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

from pydantic import Field, PlainValidator

from relay.config.types import Duration, FilePath, Given, OneOrMany, Section, Size, Written, text_schema
from relay.config.values import describe
from relay.settings import Attachments
from relay.settings.attachments import Urls

if TYPE_CHECKING:
    from relay.config.site import Site


def parse_url_pattern(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"expected a pattern of URLs such as https://files.example.com/*, found {describe(value)}")
    try:
        parts = urlsplit(value)
    except ValueError:
        parts = urlsplit("")
    if parts.scheme not in ("https", "http") or not parts.netloc or not parts.path or "@" in parts.netloc:
        raise ValueError("expected scheme, host and path, such as https://files.example.com/*")
    return value


UrlPattern = Annotated[str, PlainValidator(parse_url_pattern), text_schema("^https?://"), Written("glob of URLs")]


class UrlsSection(Section):
    allow: OneOrMany[UrlPattern] = Field(
        description="Which URLs may be named: `https://files.example.com/*`; a `*` of the host ends with it."
    )
    max_size: Size = Field(10_000_000, gt=0, description="What is larger is not fetched.")
    timeout: Duration = Field(10.0, description="How long a fetch may take.")
    cache: Size = Field(500_000_000, description="So much of what was fetched is kept, beside the spool.")
    allow_private: bool = Field(
        False, description="They may lead to this machine and to private networks, and there by `http://` too."
    )
    ca: Given[FilePath] = Field(None, description="PEM file of a CA that they are trusted by, beside the system's.")


class AttachmentsSection(Section):
    folder: Given[FilePath] = Field(
        None, description="Files below it may be named by `path`; no link is followed. Without: none."
    )
    urls: Given[UrlsSection] = Field(
        None, description="What may be named by `url`, and is fetched as the message is handed in. Without: nothing."
    )


def build_attachments(section: AttachmentsSection, site: Site) -> Attachments:
    folder = site.path(section.folder)
    if folder is not None and not folder.is_dir():
        site.wrong(("attachments", "folder"), f"{folder}: no such folder; make it, or remove the key")
    urls = section.urls
    if urls is None:
        return Attachments(folder)
    if urls.timeout <= 0:
        site.wrong(("attachments", "urls", "timeout"), "`timeout` must be longer than nothing")
    for number, pattern in enumerate(urls.allow):
        if pattern.startswith("http:") and not urls.allow_private:
            text = "nothing goes in clear: use https; `http` is for a private network, with `allow_private: true`"
            site.wrong(("attachments", "urls", "allow", number), text)
    ca = site.existing(urls.ca, ("attachments", "urls", "ca"))
    return Attachments(folder, Urls(urls.allow, urls.max_size, urls.timeout, urls.cache, urls.allow_private, ca))
