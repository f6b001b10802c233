"""Lowers blocks to a Dask graph: a key for each block, and edges that carry what is needed.

A block that takes a value from another block depends on the other's key. A block that only
comes after another one depends on a small *token* of it, because Dask sends the whole value of
every dependency to the worker that runs the dependent. The dispatcher calls it with its lock held.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dask.highlevelgraph import HighLevelGraph, MaterializedLayer
from dask.task_spec import DataNode, GraphNode, Task, TaskRef

from daskbatch.describe.spec import DEFAULT_OPTIONS, Options
from daskbatch.dispatch.declarations import declared_files
from daskbatch.dispatch.graph_order import graph_order
from daskbatch.dispatch.key_names import (
    BUFFER,
    MIXED,
    NAMES,
    KeyValues,
    NameCounts,
    Stages,
    member_names,
)
from daskbatch.dispatch.task_record import BlockKey, SubmittedBlock, TaskRecord
from daskbatch.plan.hazards import NEEDS
from daskbatch.serialization import pickling, stored_value
from daskbatch.serialization.buffers import Buffer, make_buffer
from daskbatch.worker.execution.block import (
    LOCAL,
    BlockMember,
    BlockSpec,
    DeclaredFiles,
    Limits,
    Link,
    Source,
)
from daskbatch.worker.execution.outcome import token
from daskbatch.worker.execution.surroundings import Surroundings

#: A key of a Dask graph: of a block, a token or a buffer.
GraphKey = str | BlockKey

#: The name of the annotation of keys that holds the topic of their client.
TOPIC = "daskbatch"

#: The names of three annotations of keys: how many seconds each is expected to take, whether it is
#: an open block, and whether its tasks were submitted before.
SECONDS, OPEN, AGAIN = "daskbatch_seconds", "daskbatch_open", "daskbatch_again"

#: The name of the annotation of keys that are gangs: the ranks, the cores of each rank, the
#: resources of each rank, and the workers that may run it.
GANG = "daskbatch-gang"

#: The resource that a gang's key requires until its slots are granted. No worker offers it, so
#: Dask keeps the key on the scheduler.
UNGRANTED = "daskbatch-ungranted"

#: The name of the annotation of keys with a walltime, in seconds; and a resource that no worker
#: has: Dask must not run these keys before a worker is there that stays long enough.
WALLTIME, UNFITTED = "daskbatch_walltime", "daskbatch-unfitted"

#: The name of the annotation of keys that fetch the result of a Dask future: its pickled key; and
#: the resource that they require until the future is done. No worker offers it.
FUTURE, PENDING = "daskbatch_future", "daskbatch-pending"


@dataclass(frozen=True, slots=True)
class Setting:
    """The settings of all blocks of a client.

    Parameters
    ----------
    topic : str
        The client, in reports and revocations.
    entry : callable
        The function of a Dask task: takes a pickled `BlockSpec` and the block's inputs.
    budget, share_limit, inline_limit, output_limit
        See `BlockSpec`.
    surroundings : Surroundings, optional
        What the script changes in its search path and environment, for an embedded cluster.
    streams : bool
        Whether workers send what tasks write while they write it.
    directory : str, optional
        The working directory of functions; None for that of the worker.
    """

    topic: str
    entry: Callable[..., Any]
    budget: float
    share_limit: int
    inline_limit: int
    output_limit: int
    surroundings: Surroundings | None = None
    streams: bool = False
    directory: str | None = None


@dataclass(slots=True)
class Lowered:
    """A graph to submit, and the keys in it that need a future."""

    graph: HighLevelGraph
    blocks: dict[GraphKey, SubmittedBlock]
    #: The shared buffers that the graph contains, by their keys.
    buffers: dict[str, Buffer] = field(default_factory=dict)
    #: The position of each key in the order in which Dask is to serve them; see `graph_order`.
    order: Mapping[GraphKey, int] | None = None


def lower(
    blocks: Sequence[SubmittedBlock],
    nonce: str,
    setting: Setting,
    existing_buffers: Mapping[str, Any],
    shares_memory: bool = False,
    again: bool = False,
) -> Lowered:
    """Lower blocks to one graph.

    Parameters
    ----------
    blocks : sequence of SubmittedBlock
        The blocks, each after those that it waits for.
    nonce : str
        Makes the keys unique.
    setting : Setting
        The settings of all blocks.
    existing_buffers : mapping
        The keys of buffers that are on the cluster already.
    shares_memory : bool
        Whether all workers can map this process's memory.
    again : bool
        Whether the tasks were submitted before.
    """
    lowering = _Lowering(nonce, setting, existing_buffers, len(blocks), shares_memory)
    for block in blocks:
        lowering.add(block)
    return lowering.finish(again)


class _Lowering:
    """Makes one graph: `add` lowers each block, `finish` returns the graph."""

    def __init__(
        self,
        nonce: str,
        setting: Setting,
        existing: Mapping[str, Any],
        count: int,
        shares_memory: bool,
    ) -> None:
        self._shares_memory = shares_memory
        self._nonce = nonce
        self._stages: Stages[SubmittedBlock] = Stages(nonce)
        self._names: KeyValues[NameCounts] = KeyValues(())
        self._seconds = KeyValues(0.0)
        self._setting = setting
        followed = setting.surroundings
        self._surroundings = None if followed is None else followed.changes()
        self._existing = existing
        # They count down, and all have the same width; see `graph_order`.
        self._next = 2 * 10 ** len(str(count)) - 1
        self._layers: dict[Hashable, dict[GraphKey, GraphNode]] = {}
        self._options: dict[Hashable, Options] = {}
        self._tokens: dict[SubmittedBlock, GraphKey] = {}
        self._blocks: dict[GraphKey, SubmittedBlock] = {}
        self._buffers: dict[str, Buffer] = {}
        #: Large functions as buffers.
        self._large: dict[bytes, Buffer] = {}

    def add(self, block: SubmittedBlock) -> None:
        inputs = _Inputs()
        spec = self._spec(block, inputs)
        name, shown = member_names(block.records)
        carried = inputs.blocks.items()
        group = self._stages.place(
            block,
            name,
            values=[other for other, whole in carried if whole or other.small],
            tokens=[other for other, whole in carried if not (whole or other.small)],
        )
        key = block.key = (group, self._next)
        self._names.add(key, shown)
        self._seconds.add(key, block.expected_seconds)
        self._next -= 1
        options = block.records[0].options
        block.waits = frozenset(inputs.blocks)
        block.buffer_keys = [buffer_key(buffer) for buffer in inputs.buffers.values()]
        references = [
            *(
                TaskRef(other.key if whole or other.small else self._token(other))
                for other, whole in inputs.blocks.items()
            ),
            *map(TaskRef, block.buffer_keys),
        ]
        # Dask runs a task on the worker that has its inputs. Without large inputs, any free slot
        # is better: Dask assigns tasks that are marked as data producers one by one, as slots
        # become free.
        takes_no_values = not any(inputs.blocks.values())
        self._layer(options)[key] = Task(
            key,
            self._setting.entry,
            pickling.dumps(spec),
            *references,
            _data_producer=takes_no_values,
        )
        self._blocks[key] = block

    def _layer(self, options: Options) -> dict[GraphKey, GraphNode]:
        self._options[options.placement_key] = options
        return self._layers.setdefault(options.placement_key, {})

    def _token(self, block: SubmittedBlock) -> GraphKey:
        """Return the key of a block's token, which is added to the graph if it is not there."""
        key = self._tokens.get(block)
        if key is None:
            key = self._tokens[block] = (self._stages.token_group(block), block.number)
            self._layer(DEFAULT_OPTIONS)[key] = Task(key, token, TaskRef(block.key))
        return key

    def _spec(self, block: SubmittedBlock, inputs: _Inputs) -> BlockSpec:
        """Return what a worker receives of a block; collects the inputs that it needs."""
        functions: dict[bytes, int] = {}
        calls: list[tuple[int, bytes]] = []
        links: dict[int, Link] = {}
        limits: dict[int, Limits] = {}
        declared: dict[int, DeclaredFiles] = {}
        rules: dict[bytes, int] = {}
        # One object for what is equal: then pickle writes it once.
        equal: dict[Limits, Limits] = {}
        equal_files: dict[DeclaredFiles | None, DeclaredFiles | None] = {}
        # By the tuples of a record, which tasks share if they are given one access object.
        same_files: dict[tuple[int, int, int, int], DeclaredFiles | None] = {}
        for member, record in enumerate(block.records):
            record.block, record.member = block, member
            if record.call is None:
                calls.append((-1, b""))
            else:
                assert isinstance(record.function, bytes)
                index = functions.setdefault(record.function, len(functions))
                calls.append((index, record.call.data))
                options = record.options
                if options is not DEFAULT_OPTIONS and (
                    options.retries or options.timeout or options.cwd or options.env
                ):
                    found = Limits(options.retries, options.timeout, options.cwd, options.env)
                    limits[member] = equal.setdefault(found, found)
            if record.reads or record.writes or record.strict is not None:
                index = -1
                if record.strict is not None:
                    index = rules.setdefault(record.strict, len(rules))
                same = id(record.reads), id(record.writes), id(record.removes), index
                if same not in same_files:
                    files = declared_files(record, index)
                    same_files[same] = equal_files.setdefault(files, files)
                if (files := same_files[same]) is not None:
                    declared[member] = files
            if record.waits or (record.call and (record.call.references or record.call.buffers)):
                links[member] = self._link(record, block, inputs)
        names = [record.base_name for record in block.records]
        numbers = [record.position for record in block.records]
        positions = array("i", numbers).tobytes() if max(numbers) >= 0 else b""
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
            fresh=block.records[0].options.fresh,
            journaled=any(record.writes for record in block.records),
            budget=setting.budget if block.records[0].options.apart is None else math.inf,
            share_limit=setting.share_limit,
            inline_limit=setting.inline_limit,
            output_limit=setting.output_limit,
            setup=setup,
            positions=positions,
            declared=declared,
            strict=[self._source(each, inputs) for each in rules],
            surroundings=self._surroundings,
            streams=setting.streams,
            directory=setting.directory,
        )

    def _source(self, data: bytes | Buffer, inputs: _Inputs) -> bytes | int:
        """Return small data as it is, else the position of the input that holds it.

        To be called once all blocks among the inputs are known.
        """
        if isinstance(data, bytes):
            if len(data) < pickling.MIN_SHARED_BUFFER_BYTES:
                return data
            found = self._large.get(data)
            if found is None:
                found = self._large[data] = make_buffer(data)
            data = found
        return len(inputs.blocks) + self._shared(data, inputs)

    def _shared(self, buffer: Buffer, inputs: _Inputs) -> int:
        """Return the position of a buffer among the inputs; adds it to the graph if needed."""
        if buffer_key(buffer) not in self._existing:
            self._buffers[buffer_key(buffer)] = buffer
        return inputs.buffer(buffer)

    def _link(self, record: TaskRecord, block: SubmittedBlock, inputs: _Inputs) -> Link:
        """Return where a member finds what it takes from its predecessors."""
        needs: list[Source] = []
        after: list[Source] = []
        for before, why in record.unfinished_waits().items():
            (needs if why & NEEDS else after).append(inputs.source(before, block, whole=False))
        values: list[BlockMember | bytes | str] = []
        positions: list[int | bytes] = []
        if record.call is not None:
            for producer, part in record.call.references:
                values.append(_argument(producer, part, block, inputs))
            for buffer in record.call.buffers:
                stored = stored_value.buffer_value(buffer) if self._shares_memory else None
                if stored is None:
                    positions.append(self._shared(buffer, inputs))
                else:
                    positions.append(bytes(stored))
        return Link(tuple(needs), tuple(after), tuple(values), tuple(positions))

    def finish(self, again: bool) -> Lowered:
        if self._buffers:
            layer = self._layer(DEFAULT_OPTIONS)
            for key, buffer in self._buffers.items():
                layer[key] = DataNode(key, stored_value.buffer_value(buffer) or buffer.content)
        layers = {
            f"daskbatch-{self._nonce}-{number}": MaterializedLayer(
                mapping,
                annotations={
                    **_annotations(self._options[placement], self._setting.topic),
                    NAMES: self._names,
                    SECONDS: self._seconds,
                    **({AGAIN: True} if again else {}),
                },
            )
            for number, (placement, mapping) in enumerate(self._layers.items())
        }
        layer_of = {key: name for name, layer in layers.items() for key in layer}
        dependencies = {
            name: {
                layer_of[before]
                for node in layer.values()
                for before in node.dependencies
                if layer_of.get(before, name) != name
            }
            for name, layer in layers.items()
        }
        order = graph_order(self._layers.values(), self._blocks)
        return Lowered(HighLevelGraph(layers, dependencies), self._blocks, self._buffers, order)


def lower_open_block(
    block: SubmittedBlock, options: Options, nonce: str, setting: Setting
) -> Lowered:
    """Lower a block that begins without members, and has no inputs; see `lower`.

    Parameters
    ----------
    block : SubmittedBlock
        The block.
    options : Options
        The options that all members will have in common.
    nonce, setting
        See `lower`.
    """
    key = block.key = (f"{MIXED}-{nonce}", block.number)
    spec = BlockSpec(
        block=block.number,
        topic=setting.topic,
        functions=(),
        calls=(),
        labels=(),
        links={},
        limits={},
        isolated=options.isolated,
        journaled=True,
        budget=setting.budget,
        share_limit=setting.share_limit,
        inline_limit=setting.inline_limit,
        output_limit=setting.output_limit,
        directory=setting.directory,
        surroundings=None if setting.surroundings is None else setting.surroundings.changes(),
        streams=setting.streams,
        open=True,
    )
    task = Task(key, setting.entry, pickling.dumps(spec), _data_producer=True)
    annotations = _annotations(options, setting.topic) | {SECONDS: setting.budget, OPEN: True}
    layer = MaterializedLayer({key: task}, annotations=annotations)
    return Lowered(HighLevelGraph({key[0]: layer}, {key[0]: set()}), {key: block})


class _Inputs:
    """The inputs of one block: first other blocks, then buffers."""

    def __init__(self) -> None:
        #: For each other block, whether its whole result is needed; otherwise a token suffices.
        self.blocks: dict[SubmittedBlock, bool] = {}
        self.buffers: dict[str, Buffer] = {}
        self._positions: dict[object, int] = {}

    def source(self, record: TaskRecord, block: SubmittedBlock, whole: bool) -> Source:
        """Return where a member of a block finds the outcome of another task."""
        other = record.block
        assert other is not None
        if other is block:
            return LOCAL, record.member
        self.blocks[other] = self.blocks.get(other, False) or whole
        return self._positions.setdefault(other, len(self.blocks) - 1), record.member

    def buffer(self, buffer: Buffer) -> int:
        """Return the position of a buffer among the buffers."""
        self.buffers[buffer.digest] = buffer
        return self._positions.setdefault(buffer.digest, len(self.buffers) - 1)

    def shift(self, link: Link) -> Link:
        """Move a link's buffers behind the blocks; called once all blocks are known."""
        if not link.buffers:
            return link
        first = len(self.blocks)
        shifted = (first + each if isinstance(each, int) else each for each in link.buffers)
        return link._replace(buffers=tuple(shifted))


def _argument(
    producer: TaskRecord, part: str, block: SubmittedBlock, inputs: _Inputs
) -> BlockMember | bytes | str:
    """Return an argument: the value itself if only the client has it, else its source."""
    block_of = producer.block
    if producer.over and (block_of is None or block_of.lost or block_of.open):
        if part == "result" and producer.value is not None:
            return producer.value
        if part != "result" and producer.output is not None:
            return producer.output[part == "stderr"]
    return BlockMember(inputs.source(producer, block, whole=True), part)


def buffer_key(buffer: Buffer) -> str:
    """Return the key of a shared buffer in Dask graphs."""
    return f"{BUFFER}-{buffer.digest}"


def _annotations(options: Options, topic: str) -> dict[str, Any]:
    found: dict[str, Any] = {TOPIC: topic}
    if options.priority:
        found["priority"] = options.priority
    if options.gang is not None:
        found["resources"] = {UNGRANTED: 1}
        found[GANG] = (*options.gang, dict(options.resources), list(options.workers))
        return found
    if options.resources:
        found["resources"] = dict(options.resources)
    if options.walltime is not None:
        found["resources"] = {**dict(options.resources), UNFITTED: 1}
        found[WALLTIME] = options.walltime
    if options.future is not None:
        found["resources"] = {PENDING: 1}
        found[FUTURE] = pickling.dumps_plain(options.future.key)
    if options.workers:
        found["workers"] = list(options.workers)
    if options.other_workers:
        found["allow_other_workers"] = True
    return found
