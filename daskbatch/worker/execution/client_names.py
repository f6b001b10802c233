"""Makes the names of a Batch's clients, and takes them apart.

A Batch is named by hexadecimal digits. Each client of it has a *topic*, which names it in the
messages about its tasks, and, once it is registered, a *client id*, which its tasks belong to.
"""

from __future__ import annotations

_PREFIX = "daskbatch"


def make_topic(batch: str, suffix: str = "") -> str:
    """Return the topic of a client.

    Parameters
    ----------
    batch : str
        The Batch.
    suffix : str
        Distinguishes the client from others of its Batch; the creator of the Batch has none.
    """
    return f"{_PREFIX}-{batch}-{suffix}" if suffix else f"{_PREFIX}-{batch}"


def batch_of_topic(topic: str) -> str:
    """Return the Batch of the client that has a topic.

    >>> batch_of_topic(make_topic("0a1b", "77")), batch_of_topic(make_topic("0a1b"))
    ('0a1b', '0a1b')
    """
    return topic.split("-")[1]


def first_topic(topic: str) -> str:
    """Return the topic of the client that has created the Batch of a client.

    >>> first_topic(make_topic("0a1b", "77")), first_topic(make_topic("0a1b"))
    ('daskbatch-0a1b', 'daskbatch-0a1b')
    """
    return "-".join(topic.split("-", 2)[:2])


def make_client_id(batch: str, number: int) -> str:
    """Return the id of the client with a number in its Batch; the creator has the number 0."""
    return f"{batch}-{number}" if number else batch


def batch_of_client(client_id: str) -> str:
    """Return the Batch of a client.

    >>> batch_of_client(make_client_id("0a1b", 2)), batch_of_client(make_client_id("0a1b", 0))
    ('0a1b', '0a1b')
    """
    return client_id.split("-")[0]
