"""Names of classes in the room that a figure has for them."""

from __future__ import annotations

ELLIPSIS = "..."


def short_name(name: str, most: int) -> str:
    """The name in at most so many characters: a longer one is cut in the middle, as many names begin alike."""
    text = " ".join(name.split())
    if len(text) <= most:
        return text
    kept = most - len(ELLIPSIS)
    end = kept // 2
    return f"{text[: kept - end].rstrip()}{ELLIPSIS}{text[len(text) - end :].lstrip()}"
