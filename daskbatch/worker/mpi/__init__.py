"""Runs the parallel jobs of a Batch: several processes that a launcher of MPI starts together.

Jobs of executables, from the worker down to a rank::

    job.py                the run as a task: arguments, result, errors
    job_run.py            starts the launcher, and waits for the ends of all ranks
      launcher.py           the launcher of this host, and its command line
      local_ranks.py        ranks that the worker starts itself: MPICH on one host
      supervised_ranks.py   ranks with supervisors: all others
      rank_link.py          the connections to the supervisors
    rank_supervisor.py    beside each rank: starts the executable, reports its output and its end

Jobs of callables::

    rank_function.py      what travels in place of the callable
    callable_job.py       the run as a task, in ranks that are idle or new
      rank_pool.py          idle ranks
      rank_set.py           ranks that were started together
      rank_job.py           one call on them
    rank_main.py          the program of a rank
"""
