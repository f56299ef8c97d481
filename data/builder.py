"""The prepared sets as TFDS builders, one configuration per row of `DATASETS`."""

import os
import shutil
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from tensorflow_datasets.core import file_adapters

from data.examples import FEATURES
from data.shards import Shard, plan, write_shards
from data.sources import DATASETS, open_dataset

SPLIT = "images"  # One for all: who trains and who tests is settled by patient, when training.


class PixelPerfect(tfds.core.ShardBasedBuilder, skip_registration=True):
    """The images of a data set with their annotation, as ArrayRecord and without TensorFlow.

        builder = PixelPerfect(config="rsna", data_dir="datasets/tfds")
        where = tfds.download.DownloadConfig(manual_dir="datasets/rsna")
        builder.download_and_prepare(download_config=where)

    Not a `GeneratorBasedBuilder`: that one writes all images twice, in one process, and a kill
    costs all of them. Here several processes write the shards (`data.shards`), which TFDS is given
    as they are.

    Args:
      shards: Those of `write_shards`. Without them they are made from TFDS's `manual_dir`, in a
        folder `CONFIG.partial` beside the set, where a killed run goes on.
      options: TFDS's own: `config`, a key of `DATASETS`, and `data_dir`.
    """

    VERSION = "1.1.0"
    BUILDER_CONFIGS: Sequence[tfds.core.BuilderConfig] = tuple(
        tfds.core.BuilderConfig(name=name) for name in DATASETS
    )

    def __init__(self, *, shards: Sequence[Shard] = (), **options: Any):
        self._shards = shards
        self._finished: deque[str] = deque()
        super().__init__(file_format="array_record", **options)
        self._partial = Path(self.data_path.parent).with_suffix(".partial")

    @property
    def MANUAL_DOWNLOAD_INSTRUCTIONS(self) -> str:  # noqa: N802
        """How to get the data: TFDS prints it where its `manual_dir` is empty."""
        return DATASETS[self.builder_config.name].obtain.replace("DIR", "manual_dir")

    def _info(self) -> tfds.core.DatasetInfo:
        return tfds.core.DatasetInfo(
            builder=self,
            description=f"The data set {self.builder_config.name!r} as Pixel Perfect reads it.",
            features=FEATURES,
            disable_shuffling=True,
        )

    def _shard_iterators_per_split(
        self, dl_manager: tfds.download.DownloadManager
    ) -> Mapping[str, Sequence[Callable[[], Iterator]]]:
        shards = self._shards or self._write(Path(dl_manager.manual_dir))
        kept = [shard for shard in shards if shard.rows]
        self._finished.extend(shard.path for shard in kept)
        return {SPLIT: [partial(_counted, len(shard.rows)) for shard in kept]}

    def _write(self, source: Path) -> list[Shard]:
        records = open_dataset(self.builder_config.name, source)
        if not records:
            obtain = self.MANUAL_DOWNLOAD_INSTRUCTIONS.replace("manual_dir", str(source))
            raise ValueError(f"{source}: no image of {self.builder_config.name!r} in it; {obtain}")
        self._partial.mkdir(parents=True, exist_ok=True)
        shards = write_shards(plan(records, self._partial), workers=2)
        skipped = [unreadable for shard in shards for unreadable in shard.skipped]
        if skipped:
            name, reason = skipped[0]
            warnings.warn(
                f"{len(skipped)} images left out; the first, {name}: {reason}", stacklevel=2
            )
        return shards

    def _example_writer(self) -> tfds.core.ExampleWriter:
        return _Placed(self._finished)

    def _post_download_and_prepare_hook(self) -> None:
        shutil.rmtree(self._partial, ignore_errors=True)


class _Placed(tfds.core.ExampleWriter):
    """Puts finished shards where TFDS wants its own, in order."""

    def __init__(self, finished: deque[str]):
        super().__init__(file_adapters.FileFormat.ARRAY_RECORD)
        self._finished = finished

    def write(self, path: os.PathLike, examples: Iterable[Any]) -> None:
        """A shard at `path`; the original stays, as TFDS removes all it has if it fails later."""
        del examples
        shard = self._finished.popleft()
        try:
            os.link(shard, path)
        except OSError:  # A disk without hard links.
            shutil.copyfile(shard, path)


def _counted(images: int) -> Iterator[tuple[int, None]]:
    """What TFDS iterates over to count a shard, whose content `_Placed` does not ask for."""
    return ((place, None) for place in range(images))
