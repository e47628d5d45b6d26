"""Several files made one tree: `include`.

Promises: files are read in the order of the patterns, then of their names, each once; maps merge, lists append, and
what is given twice is a problem that names both places. An included file may be empty, for snippets that are commented
out.
Refuses: an include within an included file; a pattern without wildcards that matches nothing.
"""

from __future__ import annotations

import glob
import os
from pathlib import Path

from relay.config.problems import Keys, Report
from relay.config.yamltree import Node, read, spell


def read_all(file: Path, report: Report) -> Node | None:
    """The tree of `file` and of all that it includes; None where `file` itself gave none."""
    root = read(file, report)
    if root is None:
        return None
    seen = {_same(file)}
    for found in _included(root, file, report):
        if _same(found) in seen:
            continue
        seen.add(_same(found))
        extra = read(found, report, may_be_empty=True)
        if extra is None:
            continue
        if extra.find(("include",)):
            report.wrong(extra.keys["include"], "include", "an included file cannot include others; only the main one")
            assert isinstance(extra.value, dict)
            del extra.value["include"]
        root = _merged(root, extra, (), report)
    return root


def _included(root: Node, file: Path, report: Report) -> list[Path]:
    node = root.find(("include",))
    if node is None:
        return []
    entries = node.value if isinstance(node.value, list) else [node]
    folder = glob.escape(str(file.parent))
    files: list[Path] = []
    for entry in entries:
        pattern = entry.value
        if not isinstance(pattern, str) or "\0" in pattern:
            continue  # the shape refuses it
        # Joined as text, not as Path: messages show the file as the user wrote it.
        found = [Path(name) for name in sorted(glob.glob(os.path.join(folder, pattern)))]
        if not found and not glob.has_magic(pattern):
            report.wrong(entry.mark, "include", f"no file '{pattern}'; a pattern with * may match none")
        for one in found:
            if one.is_file():
                files.append(one)
            else:
                report.wrong(entry.mark, "include", f"'{one}' is no regular file")
    return files


def _same(file: Path) -> str:
    return os.path.realpath(file)


def _merged(mine: Node, extra: Node, path: Keys, report: Report) -> Node:
    """Sections merge, and so do the maps of named things; the things themselves do not."""
    assert isinstance(mine.value, dict)
    assert isinstance(extra.value, dict)
    values, keys = dict(mine.value), dict(mine.keys)
    for name, node in extra.value.items():
        here = (*path, name)
        old = values.get(name)
        if old is None:
            values[name], keys[name] = node, extra.keys[name]
        elif isinstance(old.value, dict) and isinstance(node.value, dict) and not path:
            values[name] = _merged(old, node, here, report)
        elif isinstance(old.value, list) and isinstance(node.value, list):
            values[name] = Node(old.mark, old.value + node.value)
        else:
            mark = extra.keys[name]
            report.wrong(mark, spell(here), f"given twice, first at {keys[name].seen_from(mark)}; remove one")
    return Node(mine.mark, values, keys)
