"""What runs on a worker: the execution of blocks of tasks, in threads and in child processes.

Does not know the program that a block is from, nor anything of the client.
"""
