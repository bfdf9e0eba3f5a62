"""Build hook: a standard wheel carries the claims as ``ontarget/_claims``; an editable install must not."""

from __future__ import annotations

from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class IncludeClaims(BuildHookInterface):
    """Adds the folder to standard wheels alone: in an editable one it would shadow the checkout's package."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "standard":
            build_data["force_include"]["claims"] = "ontarget/_claims"
