"""Copies of a Batch on a cluster with TLS: certificates are never sent with the copy."""

from __future__ import annotations

import datetime
import os
import pickle
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from distributed import LocalCluster
from distributed.security import Security
from support import clients

from daskbatch import Batch
from daskbatch.worker.open_blocks.frame_link import FrameLink

pytest.importorskip("cryptography")


def make_certificate(directory: Path) -> tuple[Path, Path]:
    """Make a self-signed certificate and its key, as the administrator of a cluster does."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec
    from cryptography.x509.oid import NameOID

    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "daskbatch-test")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    files = directory / "certificate.pem", directory / "key.pem"
    files[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    files[1].write_bytes(
        key.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.NoEncryption(),
        )
    )
    return files


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return make_certificate(tmp_path_factory.mktemp("tls"))


@pytest.fixture(scope="module", params=["files", "temporary"])
def batch(request: pytest.FixtureRequest, files: tuple[Path, Path]) -> Iterator[Batch]:
    certificate, key = map(str, files)
    security = Security(
        require_encryption=True,
        tls_ca_file=certificate,
        tls_scheduler_cert=certificate,
        tls_scheduler_key=key,
        tls_client_cert=certificate,
        tls_client_key=key,
        tls_worker_cert=certificate,
        tls_worker_key=key,
    )
    with (
        LocalCluster(
            n_workers=1,
            threads_per_worker=1,
            processes=True,
            dashboard_address=":0",
            security=security if request.param == "files" else Security.temporary(),
        ) as cluster,
        Batch(cluster) as batch,
    ):
        assert batch.client.scheduler.address.startswith("tls://")
        yield batch


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_a_task_has_its_workers(batch: Batch, isolation: str) -> None:
    task = batch.options(isolation=isolation).function(clients.go_down, batch, 2, isolation)
    task.run(timeout=60)
    assert len(task.get()) == 3


def test_the_creators_process_has_its_own(batch: Batch) -> None:
    with pickle.loads(pickle.dumps(batch)) as copy:
        assert copy.client_id > 0


def test_members_of_open_blocks_are_encrypted(
    batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: set[type] = set()
    send = FrameLink.send

    def remember(link: FrameLink, *frames: bytes) -> None:
        used.add(type(link.sock))
        send(link, *frames)

    monkeypatch.setattr(FrameLink, "send", remember)
    tasks: list[Any] = [batch.function(bytes, 20_000) for _ in range(4)]
    for number in range(4, 100):
        some = (tasks[each].result for each in (number - 4, number - 3))
        tasks.append(batch.function(max, *some))
    batch.compile(tasks).run(timeout=60)
    assert tasks[-1].get() == bytes(20_000)
    # A slow machine may not connect in time: then ordinary blocks are used.
    paused = batch._session.dispatcher.table.open_blocks.is_paused
    assert used == {ssl.SSLSocket} or (paused and used <= {ssl.SSLSocket})


def test_nothing_of_it_is_in_the_pickle(batch: Batch, files: tuple[Path, Path]) -> None:
    content = pickle.dumps(batch)
    for secret in (b"BEGIN", b"PRIVATE", b"CERTIFICATE", b"Security", *map(os.fsencode, files)):
        assert secret not in content
    assert len(content) < 500


PROGRAM = """if True:
    import pickle, sys
    from daskbatch import ServiceLost
    with open(sys.argv[1], "rb") as file:
        batch = pickle.load(file)
    try:
        task = batch.function(pow, 2, 3)
        task.run(timeout=30)
        print(task.get())
        batch.close()
    except ServiceLost as error:
        print("ServiceLost", error)
"""


def run_elsewhere(batch: Batch, directory: Path, environment: dict[str, str]) -> str:
    (directory / "batch").write_bytes(pickle.dumps(batch))
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM, directory / "batch"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert not said.returncode, said.stderr
    return said.stdout.strip()


@pytest.mark.parametrize("batch", ["files"], indirect=True)
def test_another_process_has_it_from_its_configuration(
    batch: Batch, files: tuple[Path, Path], tmp_path: Path
) -> None:
    certificate, key = map(str, files)
    environment = {
        "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": certificate,
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__CERT": certificate,
        "DASK_DISTRIBUTED__COMM__TLS__CLIENT__KEY": key,
    }
    assert run_elsewhere(batch, tmp_path, environment) == "8"


@pytest.mark.parametrize("batch", ["files"], indirect=True)
def test_or_is_told_what_is_missing(batch: Batch, tmp_path: Path) -> None:
    said = run_elsewhere(batch, tmp_path, {"DASK_DISTRIBUTED__COMM__TIMEOUTS__CONNECT": "2s"})
    assert said.startswith("ServiceLost no Dask scheduler answers at 'tls://")
    assert "it needs TLS: set distributed.comm.tls in Dask's configuration" in said
