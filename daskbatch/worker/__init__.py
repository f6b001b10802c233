"""What happens on a worker.

Does not know the program that a block of tasks is from, nor the client's side of anything.
"""
