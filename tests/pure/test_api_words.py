"""Each field of the API says what it means: whoever reads the description has nothing else."""

from __future__ import annotations

from collections.abc import Iterator

from pydantic import BaseModel

import relay.api.operations  # noqa: F401 - with it come all models
from relay.api.route import Answer, Model

WITHOUT = 0  # fields that say nothing; it may only fall


def every(model: type[BaseModel]) -> Iterator[type[BaseModel]]:
    for below in model.__subclasses__():
        yield below
        yield from every(below)


def test_fields_have_words() -> None:
    models = {model for base in (Model, Answer) for model in every(base) if model.__module__.startswith("relay.")}
    assert len(models) > 60
    mute = sorted(
        f"{model.__module__}.{model.__name__}.{name}"
        for model in models
        for name, field in model.model_fields.items()
        if not field.description
    )
    assert len(mute) <= WITHOUT, mute
