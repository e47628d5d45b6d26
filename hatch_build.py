"""The manual page and the shells' completions go into the wheel, made from the command line as it is built."""

from __future__ import annotations

import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class CustomBuildHook(BuildHookInterface):
    """For wheels alone; an editable one has the sources, which change."""

    folder = ""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            return
        sys.path.insert(0, self.root)
        from relay.cli.manual import built_at, write

        self.folder = tempfile.mkdtemp()
        made = write(Path(self.folder), built_at())
        build_data["shared_data"] |= {str(file): f"share/{place}" for file, place in made.items()}

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        if self.folder:
            shutil.rmtree(self.folder)
