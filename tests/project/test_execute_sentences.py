"""Each sentence of the original description of `daskbatch.execute` has tests, which this lists.

The left column quotes the description of `bndl.execute`; the right one names the tests.
"""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

SEED = "integration/test_execute_seed.py"
MAIN = "integration/test_execute.py"
STOP = "integration/test_execute_stopping.py"
ORIGINALS = "integration/test_execute_originals.py"
PROFILING = "integration/test_execute_profiling.py"
TASK = "unit/execute/test_task.py"
NAMES = "unit/execute/test_public_names.py"

#: A sentence, or a part of one, and the tests of it: each a file and a function.
SENTENCES: list[tuple[str, list[tuple[str, str]]]] = [
    # The module
    (
        "provides a means to execute Jobs on a cluster of workers",
        [(SEED, "test_provides_a_means_to_execute_jobs_on_a_cluster_of_workers")],
    ),
    (
        "Jobs consists of Tasks which are interconnected in a directed acyclic graph (traversable "
        "in both directions)",
        [
            (SEED, "test_jobs_consist_of_tasks_in_a_graph_traversable_in_both_directions"),
            (MAIN, "test_a_circle_is_an_error_that_names_it"),
        ],
    ),
    (
        "ensure that tasks are executed in dependency order",
        [
            (SEED, "test_tasks_are_executed_in_dependency_order"),
            (ORIGINALS, "test_dependencies_of_each_on_each"),
        ],
    ),
    (
        "tasks are executed with locality (if any) to a worker",
        [(SEED, "test_tasks_are_executed_with_locality_to_a_worker")],
    ),
    (
        "tasks are restarted (if configured)",
        [(SEED, "test_tasks_are_restarted_if_configured"), (MAIN, "test_retry")],
    ),
    (
        "also when a (possibly indirect) dependent task marks a dependency as failed",
        [
            (SEED, "test_also_when_an_indirect_dependent_marks_a_dependency_as_failed"),
            (ORIGINALS, "test_results_that_a_killed_worker_had_are_made_again"),
        ],
    ),
    # The context
    (
        "Bases: Lifecycle",
        [(SEED, "test_a_context_a_job_and_a_task_have_a_lifecycle"), (TASK, "test_listeners")],
    ),
    (
        "Entry point for executing Jobs across workers",
        [(SEED, "test_provides_a_means_to_execute_jobs_on_a_cluster_of_workers")],
    ),
    (
        "Execute a Job on workers and get the results of each Task as it is executed",
        [(SEED, "test_execute_gives_the_results_of_each_task_as_it_is_executed")],
    ),
    (
        "workers - A sequence of RMIPeerNodes peer nodes to execute the job on",
        [
            (SEED, "test_workers_are_those_to_execute_the_job_on"),
            (MAIN, "test_require_workers"),
        ],
    ),
    (
        "order_results - Whether the results of the task are to be yielded in order or not",
        [(SEED, "test_whether_the_results_are_to_be_yielded_in_order_or_not")],
    ),
    ("(defaults to True)", [(SEED, "test_results_are_in_order_by_default")]),
    (
        "concurrency - The number of tasks to execute concurrently on each worker",
        [
            (SEED, "test_the_number_of_tasks_to_execute_concurrently_on_each_worker"),
            (MAIN, "test_1_concurrency_is_honoured_whatever_the_threads"),
        ],
    ),
    (
        "concurrency (int >= 1), attempts (int >= 1)",
        [(MAIN, "test_what_is_wrong_with_a_job_is_said")],
    ),
    (
        "Defaults to the bndl.execute.concurrency (bndl.execute.attempts) configuration parameter",
        [(SEED, "test_concurrency_and_attempts_default_to_the_configuration")],
    ),
    (
        "attempts - The maximum number of attempts per task",
        [(SEED, "test_at_most_attempts_per_task")],
    ),
    (
        "(not counting worker failure as induced from a task failing with NotConnected",
        [(SEED, "test_not_counting_worker_failure")],
    ),
    (
        "or a task marked as failed through DependenciesFailed)",
        [(SEED, "test_not_counting_dependencies_failed")],
    ),
    (
        "Waits for workers to be available. If not in connect_timeout a RuntimeError is raised",
        [(MAIN, "test_await_workers_without_any_is_an_error")],
    ),
    (
        "Once a worker is found, at most stable_timeout seconds will be waited for the cluster to "
        "settle. That is, until no new workers are discovered / the worker count is stable",
        [
            (MAIN, "test_await_workers_without_any_is_an_error"),
            ("unit/execute/test_stability.py", "test_the_rule"),
        ],
    ),
    (
        "When connected to exactly worker_count workers, this method will return faster",
        [(SEED, "test_await_workers_and_the_expected_worker_count")],
    ),
    (
        "worker_count: The number of workers connected with",
        [(SEED, "test_worker_count_is_the_number_of_workers_connected_with")],
    ),
    (
        "workers: All peers of the local node with node_type worker",
        [(SEED, "test_workers_are_all_peers_that_are_workers")],
    ),
    # Jobs and tasks
    (
        "A set of Tasks which can be executed on a cluster of workers",
        [(SEED, "test_a_job_is_a_set_of_tasks_with_a_name_and_a_description")],
    ),
    (
        "Execution of a Task on a worker is the basic unit of scheduling",
        [(SEED, "test_each_execution_of_a_task_is_scheduled_and_counted")],
    ),
    (
        "Execute the task on a worker. The scheduler is provided as context for the task",
        [(SEED, "test_execute_a_task_on_a_worker_with_the_scheduler_as_context")],
    ),
    (
        "Indicate locality for executing this task on workers",
        [(SEED, "test_indicate_locality_for_executing_this_task_on_workers")],
    ),
    (
        "0 is indifferent and can be skipped, -1 is forbidden, 1+ increasing locality",
        [
            (SEED, "test_0_is_indifferent_and_can_be_skipped_1_and_more_is_increasing_locality"),
            (SEED, "test_minus_1_is_forbidden"),
        ],
    ),
    (
        "started: Whether the task has started; done: Whether the task has completed execution",
        [(SEED, "test_whether_the_task_has_started_and_has_completed")],
    ),
    (
        "Utility for sub-classes to register the task as executing on a worker",
        [(SEED, "test_set_executing_registers_the_task_as_executing_on_a_worker")],
    ),
    (
        "'Externally' mark the task as done. E.g. because its 'side effect' (result) is already "
        "available",
        [
            (SEED, "test_mark_done_since_its_side_effect_is_already_available"),
            (MAIN, "test_already_succeeded"),
        ],
    ),
    (
        "'Externally' mark the task as failed. E.g. because the worker which holds the tasks' "
        "result has failed / can't be reached",
        [
            (SEED, "test_mark_failed_since_the_worker_which_holds_the_result_has_failed"),
            (MAIN, "test_a_failed_dependency_may_be_raised_from_outside_with_its_worker"),
        ],
    ),
    (
        "A task which performs a Remote Method Invocation to execute a method with positional and "
        "keyword arguments",
        [(SEED, "test_an_rmi_task_executes_a_method_with_positional_and_keyword_arguments")],
    ),
    # The scheduler
    (
        "Exception to be raised by task (i.e. returned from task.exception for tasks which have "
        "failed) to indicate that the task has been marked as failed post-hoc by the execution of "
        "another task",
        [
            (SEED, "test_failed_dependency_is_the_exception_of_a_task_that_was_marked_post_hoc"),
            (MAIN, "test_a_task_may_say_that_its_own_result_is_missing"),
        ],
    ),
    (
        "The worker_failed argument indicates whether the worker which executed the task should be "
        "considered lost or not",
        [
            (SEED, "test_whether_the_worker_which_executed_the_task_should_be_considered_lost"),
            (MAIN, "test_all_workers_named_as_lost_are_used_all_the_same"),
        ],
    ),
    (
        "Scheduler(tasks, done, workers, concurrency=1, attempts=1)",
        [
            (SEED, "test_the_scheduler_calls_done_with_each_task_and_then_with_none"),
            (SEED, "test_the_scheduler_tells_the_exception_when_a_job_is_given_up"),
            (NAMES, "test_parameters"),
        ],
    ),
    (
        "This scheduler executes Tasks taking into account their dependencies and worker locality",
        [(SEED, "test_worker_assignment_takes_concurrency_and_locality_into_account")],
    ),
    (
        "Worker assignment takes into account: concurrency (how many tasks must a worker execute "
        "concurrently) and worker locality (0 is indifferent, -1 is forbidden, 1+ increasing "
        "locality)",
        [(SEED, "test_worker_assignment_takes_concurrency_and_locality_into_account")],
    ),
    (
        "as locality 0 is likely to be common, this is assumed throughout the scheduler to reduce "
        "the memory cost for scheduling",
        [("unit/execute/test_assigner.py", "test_locality_0_takes_no_memory")],
    ),
    (
        "Many-to-many dependencies should be kept to the thousands or tens of thousands (i.e. "
        "100 * 100 tasks)",
        [(ORIGINALS, "test_dependencies_of_each_on_each")],
    ),
    (
        "Such issues can be resolved by introducing a 'barrier task' (this reduced the number of "
        "dependencies to n+m instead of n*m)",
        [
            (SEED, "test_many_to_many_dependencies_are_resolved_by_a_barrier_task"),
            (ORIGINALS, "test_groups_with_a_barrier_between_them"),
        ],
    ),
    # Exceptions
    (
        "Exception raised in a worker when a task is to be cancelled (preempted) by the driver",
        [
            (
                SEED,
                "test_task_cancelled_is_raised_in_a_worker_when_a_task_is_cancelled_by_the_driver",
            ),
            (STOP, "test_task_cancelled_is_raised_in_a_coroutine_too"),
        ],
    ),
    (
        "This exception is raised through use of PyThreadState_SetAsyncExc",
        [(SEED, "test_task_cancelled_is_raised_in_the_running_thread_also_if_it_was_swallowed")],
    ),
    (
        "This will cause the dependencies to be re-executed and the task which raises "
        "DependenciesFailed will be scheduled to execute once the dependencies complete",
        [
            (SEED, "test_dependencies_failed_causes_the_dependencies_to_be_re_executed"),
            (MAIN, "test_dependencies_failed_over_half_of_the_group_before"),
        ],
    ),
    (
        "failures is a mapping from worker names (strings) to a sequence of task_ids which have "
        "failed",
        [
            (SEED, "test_failures_is_a_mapping_from_worker_names_to_a_sequence_of_task_ids"),
            (SEED, "test_dependencies_failed_names_tasks_that_are_there"),
        ],
    ),
    # Profiling
    (
        "Perform CPU profiling across the cluster with yappi",
        [(PROFILING, "test_performs_cpu_profiling_across_the_cluster_with_yappi")],
    ),
    (
        "Print the top CPU consumers: max_rows, sort_by, sort_dir, columns, per_worker, "
        "strip_dirs, include, exclude, file",
        [
            (PROFILING, "test_print_stats_takes_all_of_the_parameters"),
            (PROFILING, "test_what_is_wrong_is_said"),
        ],
    ),
    (
        "file - Where to print to. Defaults to sys.stdout",
        [(PROFILING, "test_print_stats_goes_to_stdout_by_default")],
    ),
    (
        "Perform memory profiling on the cluster with tracemalloc",
        [(PROFILING, "test_performs_memory_profiling_on_the_cluster_with_tracemalloc")],
    ),
    (
        "Take a snapshot across the cluster and print the top memory allocations: group_by, limit, "
        "compare_to, per_worker, strip_dirs, include, exclude, file",
        [(PROFILING, "test_print_top_takes_all_of_the_parameters")],
    ),
    # The seven defects of the original
    (
        "defect 1: concurrency was not honoured",
        [
            (MAIN, "test_1_concurrency_is_honoured_whatever_the_threads"),
            (MAIN, "test_1_concurrency_holds_after_a_dependency_stage"),
        ],
    ),
    (
        "defect 2: the exception of the user's function could be lost",
        [(MAIN, "test_2_the_users_exception_surfaces_when_attempts_run_out")],
    ),
    (
        "defect 3: there were never more attempts than workers",
        [
            (MAIN, "test_3_a_retry_goes_to_the_same_worker_where_there_is_no_other"),
            (MAIN, "test_3_more_attempts_than_workers"),
        ],
    ),
    (
        "defect 4: a task that was forbidden on each worker waited for ever",
        [(MAIN, "test_4_a_task_that_is_forbidden_everywhere_fails_at_once")],
    ),
    (
        "defect 5: DependenciesFailed had no bound",
        [(MAIN, "test_5_re_execution_is_bounded")],
    ),
    (
        "defect 6: Job.cancel() left the consumer waiting",
        [(MAIN, "test_6_job_cancel_ends_the_consumer")],
    ),
    (
        "defect 7: a running job did not use workers that joined",
        [(MAIN, "test_7_workers_that_join_are_used_by_a_running_job")],
    ),
]


def functions(file: str) -> set[str]:
    tree = ast.parse((TESTS / file).read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}


@pytest.mark.parametrize(("sentence", "tests"), SENTENCES)
def test_each_sentence_has_its_tests(sentence: str, tests: list[tuple[str, str]]) -> None:
    assert tests
    for file, name in tests:
        assert name in functions(file), f"{file} has no {name}, which tests: {sentence}"


def test_each_test_of_a_sentence_is_listed() -> None:
    listed = {test for _, tests in SENTENCES for test in tests}
    quoting = {
        (SEED, node.name)
        for node in ast.walk(ast.parse((TESTS / SEED).read_text(encoding="utf-8")))
        if isinstance(node, ast.FunctionDef) and (ast.get_docstring(node) or "").startswith("'")
    }
    assert quoting <= listed
