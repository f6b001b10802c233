"""Conducts heat in a plate by a parallel job, between a function that prepares and one that plots.

The job runs the MPI program `heat_ranks.py` on two ranks. What the tasks read and write says in
which order they run. Needs the extra ``mpi``: ``pip install '.[mpi]'``. The picture is
`heat_equation.png` in the current directory, or the file that you name.
"""

import shutil
import struct
import sys
import tempfile
import zlib
from pathlib import Path

import numpy as np

from daskbatch import Batch

SIZE, STEPS = 120, 400


def prepare(path):
    """Write the plate at the start: cold, but for a hot edge and a hot spot."""
    plate = np.zeros((SIZE, SIZE))
    plate[0] = 100.0
    plate[SIZE // 2, SIZE // 4] = 1000.0
    np.save(path, plate)


def plot(source, target):
    """Draw the plate as a picture, from blue to red."""
    heat = np.clip(np.load(source) / 100.0, 0.0, 1.0)
    pixels = np.zeros((SIZE, SIZE, 3), np.uint8)
    pixels[..., 0] = 255 * heat
    pixels[..., 2] = 255 * (1 - heat)
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    chunks = [
        (b"IHDR", struct.pack(">IIBBBBB", SIZE, SIZE, 8, 2, 0, 0, 0)),
        (b"IDAT", zlib.compress(rows)),
        (b"IEND", b""),
    ]
    with open(target, "wb") as file:
        file.write(b"\x89PNG\r\n\x1a\n")
        for name, data in chunks:
            file.write(struct.pack(">I", len(data)) + name + data)
            file.write(struct.pack(">I", zlib.crc32(name + data)))


def sequential(start):
    """Return the plate at the end, without MPI."""
    plate = np.load(start)
    for _ in range(STEPS):
        around = plate[:-2, 1:-1] + plate[2:, 1:-1] + plate[1:-1, :-2] + plate[1:-1, 2:]
        plate[1:-1, 1:-1] = around / 4
    return plate


def main(work):
    start, end, picture = work / "start.npy", work / "end.npy", work / "plate.png"
    program = Path(__file__).with_name("heat_ranks.py")
    with Batch(num_workers=2) as batch:
        read, write = batch.read, batch.write
        job = batch.job(
            sys.executable,
            program,
            start,
            end,
            STEPS,
            num_procs=2,
            reads=read(start),
            writes=write(end),
            name="conduct",
        )
        tasks = [
            batch.function(prepare, start, writes=write(start)),
            job,
            batch.function(plot, end, picture, reads=read(end), writes=write(picture)),
        ]
        batch.compile(tasks).run()
        tasks[-1].get()
        print(job.stdout.get())
    print("as without MPI:", np.allclose(np.load(end), sequential(start)))
    kept = sys.argv[1] if len(sys.argv) > 1 else "heat_equation.png"
    shutil.copy(picture, kept)
    print("picture:", kept)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        main(Path(directory))
