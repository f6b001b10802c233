"""The exceptions form the documented tree, and keep their attributes when they are pickled."""

from __future__ import annotations

import copy
import pickle
from concurrent.futures import BrokenExecutor, CancelledError

import cloudpickle
import pytest

import daskbatch
from daskbatch import errors

#: Each exception, and its documented base classes.
TREE = {
    "BatchError": (Exception,),
    "SpecError": (errors.BatchError, ValueError),
    "TemplateError": (errors.SpecError,),
    "GraphError": (errors.SpecError,),
    "LifecycleError": (errors.BatchError, RuntimeError),
    "SubmitAfterCloseError": (errors.LifecycleError,),
    "TaskError": (errors.BatchError,),
    "ProcessFailed": (errors.TaskError,),
    "TaskTimeout": (errors.TaskError, TimeoutError),
    "DependencyFailed": (errors.TaskError,),
    "WorkerLost": (errors.TaskError, BrokenExecutor),
    "TaskCrashed": (errors.TaskError,),
    "SerializationError": (errors.TaskError,),
    "TaskCancelled": (errors.TaskError, CancelledError),
    "ServiceLost": (errors.BatchError, BrokenExecutor),
    "MissingInput": (errors.TaskError,),
    "MissingOutput": (errors.TaskError,),
    "UndeclaredAccess": (errors.TaskError,),
    "TasksFailed": (errors.BatchError, ExceptionGroup),
    "BatchWarning": (UserWarning,),
    "TasksFailedWarning": (errors.BatchWarning,),
    "ProgramWarning": (errors.BatchWarning,),
    "MissingInputWarning": (errors.BatchWarning,),
    "MissingOutputWarning": (errors.BatchWarning,),
}

#: One of each, with all its attributes.
SAMPLES = [
    *(getattr(errors, name)("what happened") for name in TREE if name != "TasksFailed"),
    errors.ProcessFailed("code 3", returncode=3, command=["cp", "a", "b"], stderr="cp: no a"),
    errors.DependencyFailed("'b' did not run", root="a"),
    errors.TaskCrashed("it exited", exitcode=-11),
    errors.TaskError("two", "arguments"),
    errors.BatchError(),
]


def test_the_module_exports_the_tree_and_nothing_else() -> None:
    assert sorted(errors.__all__) == sorted(TREE)


@pytest.mark.parametrize("name", TREE)
def test_each_is_of_its_kinds(name: str) -> None:
    assert issubclass(getattr(errors, name), TREE[name])


@pytest.mark.parametrize("name", TREE)
def test_each_is_a_public_name_of_the_package(name: str) -> None:
    assert getattr(daskbatch, name) is getattr(errors, name)
    assert name in daskbatch.__all__


def test_kinds_that_users_tell_apart_are_not_of_one_another() -> None:
    assert not issubclass(errors.ServiceLost, errors.TaskError)
    assert not issubclass(errors.LifecycleError, errors.SpecError)
    assert not issubclass(errors.TaskTimeout, errors.TaskCancelled)
    assert not issubclass(errors.GraphError, errors.TemplateError)


@pytest.mark.parametrize(
    "copied",
    [
        pytest.param(lambda error: pickle.loads(pickle.dumps(error, 5)), id="pickle"),
        pytest.param(lambda error: pickle.loads(pickle.dumps(error, 2)), id="old pickle"),
        pytest.param(lambda error: pickle.loads(cloudpickle.dumps(error)), id="cloudpickle"),
        pytest.param(copy.copy, id="copy"),
    ],
)
@pytest.mark.parametrize("error", SAMPLES, ids=repr)
def test_a_copy_has_the_type_the_arguments_and_the_attributes(error, copied) -> None:
    again = copied(error)
    assert type(again) is type(error)
    assert again.args == error.args
    assert vars(again) == vars(error)
    assert str(again) == str(error)


def test_a_group_survives_pickling_with_its_members() -> None:
    error = errors.TasksFailed("2 of 3 tasks failed", [ValueError("a"), OSError("b")])
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is errors.TasksFailed
    assert again.message == "2 of 3 tasks failed"
    assert list(map(repr, again.exceptions)) == ["ValueError('a')", "OSError('b')"]


def test_notes_survive_pickling() -> None:
    error = errors.ProcessFailed("code 3", returncode=3)
    error.add_note("while the moon was full")
    again = pickle.loads(pickle.dumps(error))
    assert again.__notes__ == ["while the moon was full"]
    assert again.returncode == 3


def test_what_was_not_said_is_none() -> None:
    failed = errors.ProcessFailed("it failed")
    assert (failed.returncode, failed.command, failed.stderr) == (None, None, "")
    assert errors.DependencyFailed("it did not run").root is None
    assert errors.TaskCrashed("it crashed").exitcode is None


def test_the_message_is_what_was_given() -> None:
    assert str(errors.ProcessFailed("code 3", returncode=3, command=["cp"])) == "code 3"
    assert str(errors.DependencyFailed("'b' did not run", root="a")) == "'b' did not run"
