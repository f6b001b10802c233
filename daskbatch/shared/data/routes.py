"""The names of the scheduler's handlers for shared objects, in one place.

`shared.registry.SharedRegistry` registers a handler under each name, and lists what each takes
and returns; `shared.scheduler_rpc.call_scheduler` calls them.
"""

from __future__ import annotations

BEGIN_CREATION = "daskbatch_shared_begin_creation"
DESCRIBE_ACTOR = "daskbatch_shared_describe_actor"
FINISH_CREATION = "daskbatch_shared_finish_creation"
FIND = "daskbatch_shared_find"
AWAIT_LAYOUT = "daskbatch_shared_await_layout"
REMOVE_BACKUP = "daskbatch_shared_remove_backup"
ADD_BACKUP = "daskbatch_shared_add_backup"
BACKUP_FAILED = "daskbatch_shared_backup_failed"
CLOSE = "daskbatch_shared_close"
