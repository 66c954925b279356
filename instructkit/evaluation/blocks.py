"""Tensors that are made block by block over ranks, a file a block: what is there need not be made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import msgspec
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor
from tqdm import tqdm

from instructkit.errors import UserError
from instructkit.files import read_json, reading, write_atomically, writing
from instructkit.runs.ranks import Ranks

IDENTITY = "identity.json"
SUFFIX = ".safetensors"


class Blocks:
    """The blocks of one computation in a folder that all ranks see.

    Args:
        folder: made by `open`.
        ranks: this process and the others.
        work: what the computation is called in messages.
    """

    def __init__(self, folder: Path, ranks: Ranks, work: str = "evaluation") -> None:
        self.folder, self.ranks, self.work = folder, ranks, work

    def open(self, identity: dict[str, Any], media: str = "", replace: bool = False) -> bool:
        """Begin, or go on with what lies there; all ranks call it.

        Args:
            identity: what the blocks depend on.
            media: digest of the media files that they were made of; blocks of other files are made again.
            replace: discard blocks that depend on something else, instead of an error.

        Returns:
            Whether blocks of other media files were thrown away; False on other ranks than the first.

        Raises:
            UserError: the folder holds blocks that depend on something else.
        """
        replaced = False
        if self.ranks.first:
            path, wanted = self.folder / IDENTITY, msgspec.to_builtins({"identity": identity, "media": media})
            if any(self.folder.glob(f"*{SUFFIX}")):
                found = read_json(path, dict[str, Any], self._remedy) if path.is_file() else {}
                if found.get("identity") != wanted["identity"] and not replace:
                    raise UserError(
                        f"{self.folder}: holds parts of another {self.work}; choose another folder or delete this"
                    )
                if found != wanted:
                    replaced = found.get("identity") == wanted["identity"]
                    shutil.rmtree(self.folder)
            with writing(self.folder):
                self.folder.mkdir(parents=True, exist_ok=True)
                write_atomically(path, msgspec.json.encode(wanted, order="sorted"))
        self.ranks.wait()
        return replaced

    def make(
        self, name: str, sizes: Sequence[int], make: Callable[[int], dict[str, Tensor]], unit: str, said: str
    ) -> None:
        """Make the blocks that are missing, each on one rank; all ranks call it, and go on when all are there.

        Args:
            name: of the kind of block; its files are `<name>.<number>.safetensors`.
            sizes: how much work each block is, for the progress bar.
            make: makes the block of a number.
            unit: of `sizes`, for people.
            said: what the progress bar says.
        """
        todo = [number for number in range(len(sizes)) if not self.there(name, number)]
        self.ranks.wait()  # nobody writes before everybody has looked
        mine = todo[self.ranks.rank :: self.ranks.world]
        done = sum(sizes) - sum(sizes[number] for number in todo)
        with tqdm(
            total=done + sum(sizes[number] for number in mine),
            initial=done,
            unit=f" {unit}",
            desc=said,
            disable=None if self.ranks.first else True,  # None: where nobody is watching
        ) as bar:
            for number in mine:
                self.keep(name, number, make(number))
                bar.update(sizes[number])
        self.ranks.wait()

    def keep(self, name: str, number: int, tensors: dict[str, Tensor]) -> None:
        """Write one block."""
        path = self._path(name, number)
        with writing(path):
            write_atomically(path, save({key: tensor.contiguous().cpu() for key, tensor in tensors.items()}))

    def there(self, name: str, number: int = 0) -> bool:
        """Whether a block was made."""
        return self._path(name, number).is_file()

    def read(self, name: str, number: int) -> dict[str, Tensor]:
        """One block, on the CPU.

        Raises:
            UserError: it is damaged or gone.
        """
        path = self._path(name, number)
        with reading(path, self._remedy):
            try:
                return load_file(path)
            except SafetensorError as error:
                raise ValueError(str(error)) from error

    @property
    def _remedy(self) -> str:
        return f"remove {self.folder} and start the {self.work} again, which makes all of it anew"

    def drop(self) -> None:
        """Remove all blocks: what they were for is done."""
        if self.ranks.first and self.folder.is_dir():
            shutil.rmtree(self.folder)
        self.ranks.wait()

    def _path(self, name: str, number: int) -> Path:
        return self.folder / f"{name}.{number:05}{SUFFIX}"
