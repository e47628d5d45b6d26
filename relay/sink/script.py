"""A script's file, or a built-in profile -> Profile. Mistakes are told as those of the configuration: FILE:LINE:COLUMN."""

from __future__ import annotations

from pathlib import Path

from pydantic import ValidationError

from relay.config.problems import Report, nearest
from relay.config.reword import told
from relay.config.yamltree import read
from relay.sink.profile import Profile

FOLDER = Path(__file__).parent / "profiles"


def names() -> tuple[str, ...]:
    """The built-in profiles."""
    return tuple(sorted(file.stem for file in FOLDER.glob("*.yaml")))


def named(name: str) -> Profile:
    """A built-in profile. Raises ValueError."""
    if name not in names():
        near = nearest(name, names())
        meant = f"did you mean {near}?" if near else f"there is {', '.join(names())}"
        raise ValueError(f"no profile '{name}'; {meant}")
    return read_script(FOLDER / f"{name}.yaml")


def read_script(file: Path) -> Profile:
    """A user's file, put on top of the profile that it names. Raises ConfigError with all that is wrong."""
    report = Report()
    root = read(file, report, may_be_empty=True)
    report.check()
    assert root is not None
    try:
        own = Profile.model_validate(root.plain())
    except ValidationError as error:
        told(error, root, report, Profile)
        report.check()
        raise AssertionError("no shape and no problem") from error
    if own.profile is None:
        return own
    try:
        return named(own.profile).extended(own)
    except ValueError as error:
        report.wrong(root.mark_of(("profile",)), "profile", str(error))
        report.check()
        raise AssertionError("a problem that is none") from error
