"""What tasks share: dictionaries and queues that live on the workers of a cluster.

The way of ``d[key] = value``::

    mapping -> dict_client -> proxy -> rpc.client == rpc.server -> actor -> store.shard
    the mapping  pickles key,  finds the    a socket, or a         on the     applies it to the
    protocol     and value     worker       queue in the process   worker     backups, then here

`creation` and `actor_creation` make the objects; `registry` records which worker has which
shard. A task that waits in them releases its worker slot (`waiting`).
"""
