"""Producers and consumers share a queue, and there are more consumers than slots.

A consumer that waits for an item releases its slot to other tasks, so that all of them continue.
"""

from daskbatch import Batch, Queue

PRODUCERS, CONSUMERS, ITEMS = 3, 6, 100


def produce(queue: Queue, producer: int) -> None:
    for number in range(ITEMS):
        queue.put((producer, number))  # waits while the queue is full


def consume(queue: Queue) -> list[tuple[int, int]]:
    """Take items until a None arrives: each consumer gets one, as the last item."""
    taken = []
    while (item := queue.get()) is not None:
        taken.append(item)
        queue.task_done()
    queue.task_done()
    return taken


def main() -> None:
    with Batch(num_workers=2) as batch:
        queue = batch.queue(maxsize=20)
        consumers = [batch.function(consume, queue) for _ in range(CONSUMERS)]
        producers = [batch.function(produce, queue, number) for number in range(PRODUCERS)]
        # The consumers come first: all of them wait before there is anything to take.
        for task in consumers + producers:
            task.start()
        for task in producers:
            task.wait()
        for _ in consumers:
            queue.put(None)
        queue.join()
        taken = [task.get() for task in consumers]

    everything = [(producer, number) for producer in range(PRODUCERS) for number in range(ITEMS)]
    print(f"{CONSUMERS} consumers on 2 slots took {sum(map(len, taken))} items")
    print("each item once:", sorted(item for items in taken for item in items) == everything)
    in_order = all(
        [item for item in items if item[0] == producer]
        == sorted(item for item in items if item[0] == producer)
        for items in taken
        for producer in range(PRODUCERS)
    )
    print("each producer's items in order:", in_order)


if __name__ == "__main__":
    main()
