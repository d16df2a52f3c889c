"""The generated documents by their path in the repository."""

import json
from collections.abc import Callable, Mapping
from functools import partial

from pixpod_tools.generate import (
    client_types,
    features_page,
    models_page,
    packages_page,
    payload_page,
    settings_page,
    stacks_page,
)
from pixpod_tools.generate.json_schema import json_schemas


def _render_schema(name: str) -> str:
    return json.dumps(json_schemas()[name], indent=2, ensure_ascii=False) + "\n"


PAGES: Mapping[str, Callable[[], str]] = {
    "docs/features.md": features_page.render,
    "docs/models.md": models_page.render,
    "docs/packages.md": packages_page.render,
    "docs/payload.md": payload_page.render,
    "docs/settings.md": settings_page.render,
    "docs/stacks.md": stacks_page.render,
    "src/pixpod_client/job_errors.py": client_types.render_errors,
    "src/pixpod_client/replies.py": client_types.render_replies,
    **{
        f"src/pixpod/contract/schema/{name}": partial(_render_schema, name)
        for name in json_schemas()
    },
}
