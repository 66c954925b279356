"""A converted split for users of Python: examples, their prompts, and the same for other tools."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from instructkit.data.dataset import MANIFEST, Examples
from instructkit.data.examples import has_reply
from instructkit.errors import UserError
from instructkit.prompts.templates import Prompt, train_templates


class Dataset(Examples):
    """A converted split: a sequence of `Example`s, memory-mapped.

    Example:
        >>> data = ik.Dataset("data/vqav2/train")
        >>> len(data), data[0].question
        (443757, 'What is this photo taken looking through?')
        >>> data.media_path(data[0].images[0])
        PosixPath('/releases/vqav2/train2014/COCO_train2014_000000458752.jpg')
        >>> next(data.render(seed=0)).instruction
        'Question: What is this photo taken looking through? Short answer:'

    Args:
        folder: of one split, as `ik.convert` returns it.

    Raises:
        UserError: there is no converted split, or a file of it is missing or damaged.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        place = Path(folder)
        if not (place / MANIFEST).is_file() and (below := sorted(place.glob(f"*/{MANIFEST}"))):
            raise UserError(f"{place}: holds several splits; name one: {', '.join(str(path.parent) for path in below)}")
        super().__init__(place)

    def render(self, seed: int = 0, epoch: int = 0, task: str | None = None) -> Iterator[Prompt]:
        """Each example in words, as a model reads it in training; examples without an answer are left out.

        Example:
            >>> for prompt in data.render(seed=0):
            ...     prompt.instruction, prompt.target, prompt.images

        Args:
            seed: of the run; decides the wordings.
            epoch: each epoch draws other wordings.
            task: task group whose wordings are used, such as `question_generation`; None for the dataset's own.

        Raises:
            UserError: no such task, or a wording needs a field that an example lacks.
        """
        task = task or self.manifest.task
        templates = train_templates(task)
        return (templates.render(example, seed, epoch) for example in self if has_reply(example, task))

    def to_hf(self) -> Any:
        """The same as a `datasets.Dataset`: a column for each field of `Example`, media as absolute paths.

        Example:
            >>> data.to_hf()[0]["images"]
            ['/releases/vqav2/train2014/COCO_train2014_000000458752.jpg']
        """
        root = self.manifest.media_root

        def absolute(rows: dict[str, list[Any]]) -> dict[str, list[Any]]:
            return {
                "images": [[os.path.join(root, path) for path in paths] for paths in rows["images"]],
                "video": [None if path is None else os.path.join(root, path) for path in rows["video"]],
            }

        return self.rows.map(absolute, batched=True, desc="media paths")
