"""The resolved recipe in a run's folder: written when all checks have passed, and put back where a step refuses it.

So a refused command leaves the folder to the recipe that it was made from. Imports no torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterator

from harness.pipeline.folder import RunFolder
from harness.recipe import Recipe, dump_recipe
from harness.runtime.errors import InputError
from harness.runtime.process import atomic_file


@contextlib.contextmanager
def recipe_written(recipe: Recipe, folder: RunFolder, ended: Collection[str]) -> Iterator[None]:
    """The resolved recipe lies in the folder.

    Where an input is refused while ``ended`` names no step yet, the earlier recipe lies there again, if there was one.
    """
    before = folder.recipe.read_bytes() if folder.recipe.exists() else None
    dump_recipe(recipe, folder.recipe)
    try:
        yield
    except InputError:
        if before is not None and not ended:
            with atomic_file(folder.recipe, "wb") as stream:
                stream.write(before)
        raise
