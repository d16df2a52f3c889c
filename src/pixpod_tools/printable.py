"""Texts of others on a terminal."""


def printable(text: str) -> str:
    """Return a text that cannot control a terminal."""
    return "".join(each if each.isprintable() else "?" for each in text)
