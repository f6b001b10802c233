"""Runs the parallel jobs of a Batch: several processes that a launcher of MPI starts together.

::

    job_run.py      on the worker: starts the launcher, receives what the ranks report
      launcher.py     the launcher of this machine, and its command line
      rank_link.py    connections between a worker and the supervisors of its ranks
    rank_supervisor.py  beside each rank: starts the executable, reports its output and its end
"""
