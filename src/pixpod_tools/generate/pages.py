"""The generated documents by their path in the repository."""

from collections.abc import Callable, Mapping

from pixpod_tools.generate import (
    models_page,
    packages_page,
    payload_page,
    schema_page,
    settings_page,
)

PAGES: Mapping[str, Callable[[], str]] = {
    "docs/models.md": models_page.render,
    "docs/packages.md": packages_page.render,
    "docs/payload.md": payload_page.render,
    "docs/settings.md": settings_page.render,
    "src/pixpod/contract/schema/reply.json": schema_page.render_reply,
    "src/pixpod/contract/schema/request.json": schema_page.render_request,
}
