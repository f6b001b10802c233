"""An MPI program: conducts heat in a plate. `heat_equation.py` runs it on several ranks.

``mpiexec -n 2 python heat_ranks.py start.npy end.npy 500`` does the same by hand. Each rank has
some of the plate's rows, and exchanges the first and the last with its neighbours in each step.
"""

import sys

import numpy as np
from mpi4py import MPI

comm = MPI.COMM_WORLD
start, end, steps = sys.argv[1], sys.argv[2], int(sys.argv[3])

# The edges keep their temperature, so that only the inner rows are divided among the ranks.
plate = np.load(start)
share = np.array_split(np.arange(1, len(plate) - 1), comm.size)[comm.rank]
rows = plate[share[0] - 1 : share[-1] + 2].copy()  # with one row more on both sides
above = comm.rank - 1 if comm.rank > 0 else MPI.PROC_NULL
below = comm.rank + 1 if comm.rank < comm.size - 1 else MPI.PROC_NULL

for _ in range(steps):
    comm.Sendrecv(rows[1], above, recvbuf=rows[-1], source=below)
    comm.Sendrecv(rows[-2], below, recvbuf=rows[0], source=above)
    around = rows[:-2, 1:-1] + rows[2:, 1:-1] + rows[1:-1, :-2] + rows[1:-1, 2:]
    rows[1:-1, 1:-1] = around / 4

print(f"rank {comm.rank} of {comm.size}: {len(share)} rows, at most {rows.max():.1f} degrees")
parts = comm.gather(rows[1:-1])
if comm.rank == 0:
    plate[1:-1] = np.concatenate(parts)
    np.save(end, plate)
