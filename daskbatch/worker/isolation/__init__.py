"""A block of tasks, run in a child process that can be killed at any moment.

A thread of the worker runs the block (`IsolatedRun`), and a child process runs its members,
one after another. If the child dies, or is killed because a member is late or was cancelled,
another child continues after that member. Each arrow goes from the part that writes something
to the part that reads it::

    worker process                                          child process
    ----------------------------------------                ------------------------------------
    the block's thread: IsolatedRun                         main thread: child_main.ChildServer

      ChildPool.take() -> ChildProcess

      ChildProcess.send_request  ---- control socket ---->  ChildServer.serve: a BlockRequest,
                                   (size, descriptors of    and the memory of the SharedClaims
                                    claims and request)
                                                            ChildRun, for each member:
      (marks what was revoked)   <--- SharedClaims ------>    claim it, or skip it if it was
                                                              given a status before
      MemberDeadline, OutputFiles <--- SharedClaims ------    which member runs, since when,
                                                              which attempt, where its output
                                                              begins
                                                              call its function
      OutputFiles                <--- stdout, stderr -----    FileCapture takes from the same
                                       (unnamed files)        files what the member wrote
      worker's journal (a file)  <------------------------    Journal.record, for the nanny
      FrameReader -> OutcomeLog  <--- frames pipe --------    SendingLog -> FrameWriter

      ChildProcess.wait          <--- control socket -----  READY, BLOCK_OVER, PIPE_FULL,
                                                            WAITING_CHANGED
      the worker's slot          <--- SharedClaims ------>  RemoteSlot: whether the member waits,
                                                            whether it has the slot

    other threads of the worker: revoke, defer and cancel members by the SharedClaims; with its
    lock held they halt the block, and `ChildProcess.wake` has the block's thread kill the child

Members that no child runs (skipped, revoked, or none can be started) get their outcomes from
a `FallbackRun` in the worker. The order of writes in the child makes a kill at any moment
unambiguous: the frames of all earlier members are in the pipe before a member is claimed.

Nothing is imported here: a child process must start quickly.
"""
