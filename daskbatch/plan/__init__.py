"""What may run when: pure functions of the description, with no I/O, clock or Dask."""
