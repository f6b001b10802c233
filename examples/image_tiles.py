"""An image in tiles: each tile is computed and sharpened in parallel, then all are put together.

To sharpen a tile needs the edges of the tiles around it. No task is told which tasks it has to wait
for: it declares the files that it reads. Tiles near the set take much longer than others, and no
tile waits for one that it does not touch.

Leaves `image_tiles.png` in the current directory. Needs Pillow: ``pip install '.[dashboard]'``.
"""

import argparse
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

from daskbatch import Batch

LEFT, TOP, WIDTH = -0.754, 0.115, 0.012  # a part of the Mandelbrot set
STEPS = 300


def compute(row, column, tiles, size, target):
    """Write how soon the points of a tile leave the circle."""
    side = tiles * size
    x = LEFT + WIDTH * (column * size + np.arange(size)) / side
    y = TOP - WIDTH * (row * size + np.arange(size)) / side
    point = x + 1j * y[:, None]
    count = np.zeros(point.size)
    inside, start = np.arange(point.size), point.ravel()
    value = np.zeros_like(start)
    for _ in range(STEPS):
        value = value**2 + start
        stay = np.abs(value) < 2
        inside, start, value = inside[stay], start[stay], value[stay]
        count[inside] += 1
    count[inside] = 0  # these points stay: they are dark
    np.save(target, (np.log1p(count) / np.log1p(STEPS)).reshape(point.shape))


def sharpen(row, column, files, target):
    """Write a tile minus the mean around each of its points; edges come from other tiles."""
    middle = np.load(files[row, column])
    padded = np.pad(middle, 1, mode="edge")
    for (down, right), there, here in (
        ((-1, 0), np.s_[-1, :], np.s_[0, 1:-1]),
        ((1, 0), np.s_[0, :], np.s_[-1, 1:-1]),
        ((0, -1), np.s_[:, -1], np.s_[1:-1, 0]),
        ((0, 1), np.s_[:, 0], np.s_[1:-1, -1]),
    ):
        if (other := (row + down, column + right)) in files:
            padded[here] = np.load(files[other])[there]
    around = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    np.save(target, np.clip(middle + 0.5 * (middle - around / 4), 0, 1))


def put_together(sources, tiles, picture):
    """Paint all tiles in one picture."""
    rows = [
        np.hstack([np.load(sources[row, column]) for column in range(tiles)])
        for row in range(tiles)
    ]
    light = np.vstack(rows)
    colours = np.stack([light**3, light**1.5, np.sqrt(light)], axis=-1)
    Image.fromarray((255 * colours).astype(np.uint8)).save(picture)
    return light


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tiles", type=int, default=6, help="in each direction")
    parser.add_argument("--size", type=int, default=80, help="of a tile in pixels")
    given = parser.parse_args()
    places = [(row, column) for row in range(given.tiles) for column in range(given.tiles)]
    picture = Path("image_tiles.png").resolve()
    with tempfile.TemporaryDirectory() as directory, Batch(num_workers=2) as batch:
        read, write = batch.read, batch.write
        raw = {place: Path(directory, "raw-{}-{}.npy".format(*place)) for place in places}
        sharp = {place: Path(directory, "sharp-{}-{}.npy".format(*place)) for place in places}
        tasks = [
            batch.function(
                compute, *place, given.tiles, given.size, raw[place], writes=write(raw[place])
            )
            for place in places
        ]
        for row, column in places:
            five = [(0, 0), (-1, 0), (1, 0), (0, -1), (0, 1)]
            needed = [(row + down, column + right) for down, right in five]
            files = {place: raw[place] for place in needed if place in raw}
            target = sharp[row, column]
            tasks.append(
                batch.function(
                    sharpen,
                    *(row, column, files, target),
                    reads=[read(path) for path in files.values()],
                    writes=write(target),
                )
            )
        tasks.append(
            batch.function(
                put_together,
                *(sharp, given.tiles, picture),
                reads=[read(path) for path in sharp.values()],
                writes=write(picture),
            )
        )
        program = batch.compile(tasks, name="tiles")
        program.run(check=True)
        edges = sum(program.graph.counts().values())
        light = tasks[-1].get()
    print("step          tasks  seconds")
    for function in (compute, sharpen, put_together):
        infos = [t.info for t in tasks if t.name.partition("[")[0] == function.__name__]
        print(f"{function.__name__:12}  {len(infos):5}  {sum(i.seconds for i in infos):7.2f}")
    print(f"{edges} edges follow from the files; mean brightness {light.mean():.4f}")
    print("picture:", picture)


if __name__ == "__main__":
    main()
