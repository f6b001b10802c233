"""Lowers blocks to a Dask graph: a key for each, and edges that carry what is needed.

Does not know the cluster that the graph is meant for, nor how the blocks came about.

A block that takes a value from another hangs on the other's key. One that only comes
after it hangs on a small *token* of it, since Dask ships the whole value of every
dependency to where the dependent runs.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode, GraphNode, Task, TaskRef

from daskbatch.describe.spec import DEFAULT, Options
from daskbatch.dispatch.placement import SubmittedBlock
from daskbatch.dispatch.task_record import TaskRecord
from daskbatch.plan.hazards import NEEDS
from daskbatch.serialization import pickling
from daskbatch.worker.execution.block import LOCAL, BlockMember, BlockSpec, Limits, Link, Source
from daskbatch.worker.execution.outcome import token

Key = str | tuple[str, int]

#: The annotation of keys: the topic of the client that they belong to.
TOPIC = "daskbatch"

#: What Dask calls tokens. A name of their own, or it would expect them to take as long as
#: other tasks, and have idle workers steal them, values and all.
TOKEN = "daskbatch_token"


@dataclass(frozen=True, slots=True)
class Setting:
    """What is the same for all blocks of a client.

    Parameters
    ----------
    topic : str
        Where reports go.
    entry : callable
        What a Dask task runs: takes a pickled `BlockSpec` and the block's inputs.
    budget, share_limit, inline_limit, output_limit
        See `BlockSpec`.
    """

    topic: str
    entry: Callable[..., Any]
    budget: float
    share_limit: int
    inline_limit: int
    output_limit: int


@dataclass(slots=True)
class Lowered:
    """A graph to submit, and which of its keys to ask for."""

    graph: HighLevelGraph
    blocks: dict[Key, SubmittedBlock]
    #: The shared buffers that the graph brings along, by their key.
    buffers: dict[str, pickling.Buffer] = field(default_factory=dict)


def lower(
    blocks: Sequence[SubmittedBlock],
    name: str,
    nonce: str,
    setting: Setting,
    known_buffers: Mapping[str, Any],
) -> Lowered:
    """Lower blocks to one graph.

    Parameters
    ----------
    placements : sequence of SubmittedBlock
        The blocks, each behind those that it waits for.
    name : str
        What Dask's dashboard is to call them.
    nonce : str
        Makes the keys unique.
    setting : Setting
        What holds for all.
    known_buffers : mapping
        Keys of buffers that are on the cluster already.
    """
    lowering = _Lowering(name, nonce, setting, known_buffers, len(blocks))
    for block in blocks:
        lowering.add(block)
    return lowering.finish()


class _Lowering:
    def __init__(
        self, name: str, nonce: str, setting: Setting, known: Mapping[str, Any], count: int
    ) -> None:
        self._group = f"{_dashboard_name(name)}-{nonce}"
        self._nonce = nonce
        self._setting = setting
        self._known = known
        # Among equals, dask.order starts with the key whose text is last: count down, in
        # numbers of one width, so that what comes first in the program starts first.
        self._next = 2 * 10 ** len(str(count)) - 1
        self._layers: dict[Hashable, dict[Key, GraphNode]] = {}
        self._options: dict[Hashable, Options] = {}
        self._tokens: dict[SubmittedBlock, Key] = {}
        self._blocks: dict[Key, SubmittedBlock] = {}
        self._buffers: dict[str, pickling.Buffer] = {}
        #: Large functions as buffers.
        self._large: dict[bytes, pickling.Buffer] = {}

    def add(self, block: SubmittedBlock) -> None:
        inputs = _Inputs()
        spec = self._spec(block, inputs)
        key = block.key = (self._group, self._next)
        self._next -= 1
        options = block.records[0].options
        block.waits = frozenset(inputs.blocks)
        block.buffers = [buffer_key(buffer) for buffer in inputs.buffers.values()]
        references = [
            *(
                TaskRef(other.key if whole or other.small else self._token(other))
                for other, whole in inputs.blocks.items()
            ),
            *map(TaskRef, block.buffers),
        ]
        # Dask puts a task beside its inputs; with nothing worth moving there, it is better
        # off wherever a slot is free, and is handed out one by one as slots become free.
        free = not any(inputs.blocks.values())
        self._layer(options)[key] = Task(
            key,
            self._setting.entry,
            pickling.dumps(spec),
            *references,
            _data_producer=free,
        )
        self._blocks[key] = block

    def _layer(self, options: Options) -> dict[Key, GraphNode]:
        self._options[options.placement_key] = options
        return self._layers.setdefault(options.placement_key, {})

    def _token(self, block: SubmittedBlock) -> Key:
        key = self._tokens.get(block)
        if key is None:
            key = self._tokens[block] = (f"{TOKEN}-{self._nonce}", block.number)
            self._layer(DEFAULT)[key] = Task(key, token, TaskRef(block.key))
        return key

    def _spec(self, block: SubmittedBlock, inputs: _Inputs) -> BlockSpec:
        functions: dict[bytes, int] = {}
        calls: list[tuple[int, bytes]] = []
        links: dict[int, Link] = {}
        limits: dict[int, Limits] = {}
        equal: dict[Limits, Limits] = {}
        for member, record in enumerate(block.records):
            record.block, record.member = block, member
            if record.call is None:
                calls.append((-1, b""))
            else:
                assert isinstance(record.function, bytes)
                index = functions.setdefault(record.function, len(functions))
                calls.append((index, record.call.data))
                o = record.options
                if o.retries or o.timeout or o.cwd or o.env:
                    # One object where they are equal: then pickle writes it once.
                    found = Limits(o.retries, o.timeout, o.cwd, o.env)
                    limits[member] = equal.setdefault(found, found)
            if record.waits or (record.call and (record.call.references or record.call.buffers)):
                links[member] = self._link(record, block, inputs)
        names = [record.name for record in block.records]
        setting = self._setting
        setup: bytes | int | None = None
        if (prepare := block.records[0].options.prepare) is not None:
            setup = self._source(prepare.packed(), inputs)
        return BlockSpec(
            block=block.number,
            topic=setting.topic,
            functions=[self._source(function, inputs) for function in functions],
            calls=calls,
            labels=names[:1] if len(set(names)) == 1 else names,
            links={member: inputs.shift(link) for member, link in links.items()},
            limits=limits,
            isolated=block.records[0].options.isolated,
            journaled=any(record.writes for record in block.records),
            budget=setting.budget if block.records[0].options.apart is None else math.inf,
            share_limit=setting.share_limit,
            inline_limit=setting.inline_limit,
            output_limit=setting.output_limit,
            setup=setup,
        )

    def _source(self, data: bytes | pickling.Buffer, inputs: _Inputs) -> bytes | int:
        """Give what is small as it is, or the input that has it; once all blocks are known."""
        if isinstance(data, bytes):
            if len(data) < pickling.SHARED_BUFFER:
                return data
            found = self._large.get(data)
            if found is None:
                found = self._large[data] = pickling.make_buffer(data)
            data = found
        return len(inputs.blocks) + self._shared(data, inputs)

    def _shared(self, buffer: pickling.Buffer, inputs: _Inputs) -> int:
        if buffer_key(buffer) not in self._known:
            self._buffers[buffer_key(buffer)] = buffer
        return inputs.buffer(buffer)

    def _link(self, record: TaskRecord, home: SubmittedBlock, inputs: _Inputs) -> Link:
        needs: list[Source] = []
        after: list[Source] = []
        for before, why in record.waits_left().items():
            (needs if why & NEEDS else after).append(inputs.source(before, home, whole=False))
        values: list[BlockMember | bytes | str] = []
        positions: list[int] = []
        if record.call is not None:
            for producer, part in record.call.references:
                values.append(_value(producer, part, home, inputs))
            for buffer in record.call.buffers:
                positions.append(self._shared(buffer, inputs))
        return Link(tuple(needs), tuple(after), tuple(values), tuple(positions))

    def finish(self) -> Lowered:
        if self._buffers:
            layer = self._layer(DEFAULT)
            for key, buffer in self._buffers.items():
                layer[key] = DataNode(key, buffer.content)
        layers = {
            f"{self._group}-{number}": MaterializedLayer(
                mapping, annotations=_annotations(self._options[block], self._setting.topic)
            )
            for number, (block, mapping) in enumerate(self._layers.items())
        }
        home = {key: name for name, layer in layers.items() for key in layer}
        dependencies = {
            name: {
                home[before]
                for node in layer.values()
                for before in node.dependencies
                if home.get(before, name) != name
            }
            for name, layer in layers.items()
        }
        return Lowered(HighLevelGraph(layers, dependencies), self._blocks, self._buffers)


class _Inputs:
    """The inputs of one block: other blocks first, then buffers."""

    def __init__(self) -> None:
        #: Whether the whole result of a block is needed, or a token of it will do.
        self.blocks: dict[SubmittedBlock, bool] = {}
        self.buffers: dict[str, pickling.Buffer] = {}
        self._positions: dict[object, int] = {}

    def source(self, record: TaskRecord, home: SubmittedBlock, whole: bool) -> Source:
        block = record.block
        assert block is not None
        if block is home:
            return LOCAL, record.member
        self.blocks[block] = self.blocks.get(block, False) or whole
        return self._positions.setdefault(block, len(self.blocks) - 1), record.member

    def buffer(self, buffer: pickling.Buffer) -> int:
        self.buffers[buffer.digest] = buffer
        return self._positions.setdefault(buffer.digest, len(self.buffers) - 1)

    def shift(self, link: Link) -> Link:
        """Put a link's buffers behind the blocks, once it is known how many there are."""
        if not link.buffers:
            return link
        first = len(self.blocks)
        return link._replace(buffers=tuple(first + position for position in link.buffers))


def _value(
    producer: TaskRecord, part: str, home: SubmittedBlock, inputs: _Inputs
) -> BlockMember | bytes | str:
    """Give what fills a slot: the value itself, if only the client has it, or where it is."""
    if producer.over and (producer.block is None or producer.block.lost):
        if part == "result" and producer.value is not None:
            return producer.value
        if part != "result" and producer.output is not None:
            return producer.output[part == "stderr"]
    return BlockMember(inputs.source(producer, home, whole=True), part)


def buffer_key(buffer: pickling.Buffer) -> str:
    return f"buffer-{buffer.digest}"


def _annotations(options: Options, topic: str) -> dict[str, Any]:
    found: dict[str, Any] = {TOPIC: topic}
    if options.resources:
        found["resources"] = dict(options.resources)
    if options.workers:
        found["workers"] = list(options.workers)
    if options.other_workers:
        found["allow_other_workers"] = True
    if options.priority:
        found["priority"] = options.priority
    return found


def _dashboard_name(name: str) -> str:
    """Make a name that Dask's dashboard keeps whole: it cuts at what is no letter or digit."""
    plain = re.sub(r"[^A-Za-z0-9_.]+", "_", name)[:60]
    return plain if plain[:1].isalpha() else f"task_{plain}"
