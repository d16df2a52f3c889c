"""The generated documents by their path in the repository."""

from collections.abc import Callable, Mapping

from pixpod_tools.generate import settings_page

PAGES: Mapping[str, Callable[[], str]] = {
    "docs/settings.md": settings_page.render,
}
