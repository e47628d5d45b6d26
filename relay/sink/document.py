"""The keys of a script, for docs/sink.md. `python -m relay.sink.document` prints them; a test holds the page to it."""

from __future__ import annotations

from relay.config.document import default, keys, sections, written
from relay.sink.profile import Profile, Reply


def tables() -> str:
    parts: list[str] = []
    for title, section in sections(Profile):
        parts.append(f"**{f'`{title}`' if title else 'Top level'}**: {(section.__doc__ or '').strip()}\n\n")
        parts.append("| key | value | default | meaning |\n|---|---|---|---|\n")
        for name, field in keys(section):
            value = f"`{field.default}`" if isinstance(field.default, Reply) else default(field)
            cells = (f"`{name}`", written(field.annotation, field.metadata), value, field.description or "")
            parts.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |\n")
        parts.append("\n")
    return "".join(parts[:-1])


if __name__ == "__main__":
    print(tables(), end="")
