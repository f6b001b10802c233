"""The program for Kubernetes in the guides fits dask_kubernetes, as far as no cluster is needed.

dask_kubernetes is not among what the tests install: without it, these tests are skipped.
"""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import DOCS

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dask_kubernetes") is None,
    reason="dask_kubernetes is not installed: pip install dask-kubernetes",
)


def keywords_of(function: str) -> dict[str, Any]:
    """Return the keywords with which the program of the page calls a function."""
    page = (DOCS / "guides" / "clusters.md").read_text("utf-8")
    [program] = re.findall(r"```py\n(.*?)```", page.split("## Kubernetes")[1], re.DOTALL)
    [call] = [
        node
        for node in ast.walk(ast.parse(program))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(function)
    ]
    assert not call.args
    return {str(each.arg): ast.literal_eval(each.value) for each in call.keywords}


def schema_of(kind: str) -> Any:
    """Return the schema of a resource of the Dask operator, from dask_kubernetes."""
    import dask_kubernetes

    [path] = Path(dask_kubernetes.__file__).parent.rglob(f"crds/{kind.lower()}.yaml")
    definition = yaml.safe_load(path.read_text("utf-8"))["spec"]
    assert definition["names"]["kind"] == kind
    return definition["versions"][0]["schema"]["openAPIV3Schema"]


def test_the_calls_of_the_page_have_the_parameters_that_dask_kubernetes_knows() -> None:
    from dask_kubernetes.operator import KubeCluster
    from distributed.deploy import Cluster

    assert issubclass(KubeCluster, Cluster)  # which a Batch accepts
    inspect.signature(KubeCluster).bind(**keywords_of("KubeCluster"))
    inspect.signature(KubeCluster.adapt).bind(None, **keywords_of("adapt"))


def test_the_cluster_of_the_page_conforms_to_the_schema_of_the_operator() -> None:
    import jsonschema
    from dask_kubernetes.operator import make_cluster_spec

    # KubeCluster takes these two from Dask's configuration, where they are empty.
    specification = make_cluster_spec(**keywords_of("KubeCluster"), env=[], resources={})
    validator = jsonschema.Draft202012Validator(schema_of("DaskCluster"))
    assert list(validator.iter_errors(specification)) == []
    specification["spec"]["worker"]["replicas"] = "four"
    assert list(validator.iter_errors(specification))
