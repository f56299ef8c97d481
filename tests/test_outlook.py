"""What a long command says of the time before it, and that each front says it."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import cache, embedded, records, shards, synthetic
from pp_jax import memory, outlook
from pp_jax.evaluate import score as scoring
from pp_jax.evaluate.journal import open_journal
from pp_jax.evaluate.protocols import parse_protocols
from pp_jax.predict import __main__ as predict_front
from pp_jax.preprocess import roi
from tests.test_score import LEFT, RIGHT, Watched, always, filled, outcome, subject, to_source


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.04, "0.04 s"),
        (3, "3 s"),
        (61, "60 s"),
        (119, "120 s"),
        (120, "2 min"),
        (451, "8 min"),
        (7199, "120 min"),
        (7200, "2.0 hours"),
        (9000, "2.5 hours"),
        (40_000, "11 hours"),
        (3 * 86_400, "3 days"),
    ],
)
def test_a_time_is_told_in_two_or_three_digits_of_a_unit_that_is_there_twice(seconds, words):
    assert outlook.in_words(seconds) == words


def test_a_line_has_number_time_and_memory_and_there_is_none_below_a_minute():
    told = outlook.line(26_684, "images", seconds=451, memory=("1.2 GiB resident",))
    assert told == "26,684 images, about 8 min, 1.2 GiB resident"
    assert outlook.line(9, "steps", seconds=60) == "9 steps, about 60 s"
    assert outlook.line(9, "steps", seconds=59.9, memory=("1.2 GiB resident",)) == ""


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands until it is set."""

    class Clock:
        now = 100.0

        def monotonic(self):
            return self.now

    one = Clock()
    monkeypatch.setattr(outlook, "time", one)
    monkeypatch.setattr(outlook, "peaks", lambda devices: [f"memory ({devices=})"])
    return one


def tell_all(clock, total, times, **options):
    """What is said while items are done at these times."""
    said = []

    def say(line):
        said.append((clock.now, line))

    tell = outlook.watch(total, "images", say=say, **options)
    for number, now in enumerate(times, 1):
        clock.now = 100.0 + now
        tell(number)
    return said


def test_the_first_item_counts_once_and_the_pace_is_that_of_the_others(clock):
    """The first is compiled: 40 s, and then 99 at 10 s each."""
    said = tell_all(clock, 100, [40, 50, 60, 70], devices=True)
    assert said == [(150.0, "100 images, about 17 min, memory (devices=True)")]  # 1030 s.


def test_the_pace_is_taken_over_some_seconds(clock):
    """Four at once from another process, then two a second: 600 take five minutes."""
    times = [1, 1, 1, 1, *np.arange(1.5, 20, 0.5)]
    ((when, line),) = tell_all(clock, 600, times)
    assert when == 106.0
    assert line.startswith("600 images, about 4 min")  # 13 items in 5 s, of which 3 came at once.


def test_nothing_is_said_of_what_is_done_within_a_minute_or_with_its_first_item(clock):
    assert tell_all(clock, 11, [1, 6.1, 11.2, 16.3]) == []
    assert tell_all(clock, 1, [1000]) == []


def test_items_come_through_in_order_and_each_may_stand_for_several(clock, capsys):
    seen = []
    for item in outlook.watched("abcd", 32, "images", each=8):
        seen.append(item)
        clock.now += 30
    assert seen == list("abcd")
    assert capsys.readouterr().out == "32 images, about 2 min, memory (devices=True)\n"


HOLD = "held = bytearray(b'x') * 2**29; print('ready', flush=True); input()"


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux's /proc")
def test_memory_of_workers_is_counted_while_they_work(monkeypatch):
    alone = float(memory.peaks(devices=False)[0].split()[0])
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD], **pipes) as worker:
        assert worker.stdout.readline() == "ready\n"
        monkeypatch.setattr("multiprocessing.active_children", lambda: [worker])
        both = float(memory.peaks(devices=False)[0].split()[0])
        worker.communicate("\n")
    assert alone + 0.4 <= both < alone + 1  # It holds half a GiB.
    assert memory.peaks(devices=False)[0] == f"{alone:.1f} GiB resident"


# The fronts.


@pytest.fixture
def told(monkeypatch, capsys):
    """The one line that was said, of a command that counts as long from its second item on."""
    monkeypatch.setattr(outlook, "_LONG", 0.0)
    monkeypatch.setattr(outlook, "_LOOK", 0.0)

    def told() -> str:
        lines = capsys.readouterr().out.splitlines()
        (line,) = [line for line in lines if ", about " in line]
        return line

    return told


def test_an_evaluation_tells_of_the_images_that_models_are_still_asked_about(told, tmp_path):
    model = Watched(always(outcome(filled(LEFT, RIGHT)))).method()
    guesses = [model._replace(label=name, guesses=True) for name in ("box", "ellipse")]
    book = open_journal(tmp_path / "x", {})
    sources = [to_source(subject(name)) for name in ("a", "bb", "ccc")]
    asked = {"protocols": parse_protocols("box"), "seed": 0, "stored": {}}
    scoring.score(book, [model, *guesses], sources, **asked)
    assert told().startswith("3 images x models, about ")


def test_a_prediction_tells_of_its_images(told, tmp_path):
    paths = {}
    for name in "abc":
        paths[name] = tmp_path / f"{name}.png"
        Image.new("L", (8, 8)).save(paths[name])

    def refuse(name, image):
        raise ValueError("nothing is asked")

    folders = predict_front.Folders(tmp_path / "out", None)
    _, failures = predict_front.process(paths, refuse, folders, nifti=False)
    assert len(failures) == 3
    assert told().startswith("3 images, about ")


def test_the_generator_tells_of_its_images(told, tmp_path):
    synthetic.generate(tmp_path / "set", images=3, side=64, workers=0)
    assert told().startswith("3 images, about ")


def set_of(folder: Path, count: int) -> list[records.Record]:
    for number in range(count):
        Image.fromarray(np.full((8, 8), number, np.uint8)).save(folder / f"{number}.png")
    return [
        records.Record(str(n), str(n), folder / f"{n}.png", (), None, "box", "")
        for n in range(count)
    ]


def test_a_preparation_tells_of_the_images_that_are_not_finished(told, tmp_path):
    everything = set_of(tmp_path, 20)
    jobs = shards.plan(everything, tmp_path / "shards")
    (tmp_path / "shards").mkdir()
    shards.write_shards(jobs[:1], workers=0)
    assert told().startswith("8 images, about ")
    shards.write_shards(jobs, workers=0)
    assert told().startswith("12 images, about ")


def test_embeddings_tell_of_the_images_that_are_computed(told, tmp_path):
    everything = set_of(tmp_path, 5)
    opened = cache.open_cache(tmp_path / "kept", about={}, shape=(1,), dtype="float32")

    def embed(chosen, into):
        options = {"side": 16, "fit": "longest", "cut": roi.whole_window, "batch": 2}
        return embedded.embed(chosen, into, lambda images, sizes: images[:, 0, 0, :1], **options)

    found = embed(everything[:1], opened).cache
    embed(everything, found)
    assert told().startswith("4 images, about ")
