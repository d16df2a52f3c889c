"""Receivers that do not take an event leave a dead letter, which scripts/redeliver sends again."""

import asyncio
import re
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from boto3.session import Session
from pydantic import SecretStr
from support.factories import make_job
from support.fake_internet import local_server
from support.s3_server import running_moto
from support.webhooks import INLINE, OTHER, SECRET, Receiver, url_of, warnings_of, worker_of

from pixpod.outputs.s3_storage import S3ImageStore
from pixpod.outputs.storage import DirectoryImageStore
from pixpod_tools.redeliver.cli import main

pytest_plugins = ["integration.s3_servers"]

DELIVERY = Path(__file__).resolve().parents[2] / "docs" / "delivery.md"


async def serve(receiver, letters, ids=("job-1",), *, port=0, secrets=(SECRET,)):
    """Run jobs while there is a receiver; return its port and the replies."""
    async with (
        local_server(receiver, port) as port,
        worker_of(port, letters=letters, secrets=secrets) as worker,
    ):
        job = make_job(webhook_url=url_of(port), output=INLINE)
        return port, [await worker.handle(job | {"id": job_id}) for job_id in ids]


async def redeliver(receiver, port, monkeypatch, *arguments, secrets=SECRET, **env):
    """Run the script while there is a receiver; return its exit status."""
    monkeypatch.setenv("PIXPOD_WEBHOOK_SECRETS", secrets)
    monkeypatch.setenv("PIXPOD_ALLOW_TARGETS", f"webhook:127.0.0.1:{port}")
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    async with local_server(receiver, port):
        return await asyncio.to_thread(main, list(arguments))


def letters_below(directory):
    return sorted(path.relative_to(directory) for path in directory.rglob("*.dead-letter"))


@pytest.fixture
def out(tmp_path, monkeypatch):
    monkeypatch.setenv("PIXPOD_OUTPUT_DIR", str(tmp_path))
    return tmp_path


# --- every fault of a receiver ---------------------------------------------------------------

FAULTS = {
    "down": (None, "expected a host that answers completely"),
    "slow": (Receiver(seconds=60), "expected a complete answer within 0.3 s"),
    "broken": (Receiver([503]), "HTTP status 503"),
    **{
        f"answers {status}": (Receiver([status]), f"HTTP status {status}")
        for status in (301, 307, 400, 410, 413, 429)
    },
}


@pytest.mark.parametrize(("faulty", "reason"), FAULTS.values(), ids=FAULTS)
def test_event_that_a_receiver_has_not_taken_is_sent_again(
    faulty, reason, out, monkeypatch, capsys
):
    receiver = Receiver()

    async def run():
        if faulty is None:
            async with local_server(receiver) as port:
                pass
            async with worker_of(port, letters=DirectoryImageStore(out)) as worker:
                reply = await worker.handle(make_job(webhook_url=url_of(port), output=INLINE))
        else:
            port, (reply,) = await serve(faulty, DirectoryImageStore(out))
        (letter,) = letters_below(out)
        assert letter.parent == Path("live/job-1")
        assert b"pomegranate" not in (out / letter).read_bytes()
        return reply, await redeliver(receiver, port, monkeypatch)

    reply, status = asyncio.run(run())
    (warning,) = warnings_of(reply)
    assert warning == (
        f"the webhook for completed was not delivered: {reason}; it is kept as a dead letter"
    )
    (event,) = receiver.events
    assert (event.type, event.data["job_id"]) == ("completed", "job-1")
    if faulty is not None:
        assert event == faulty.events[-1]
    (image,) = event.data["images"]
    assert image["sha256"] == reply["images"][0]["sha256"] and "data" not in image
    assert (status, letters_below(out)) == (0, [])
    table = capsys.readouterr().out
    assert re.search(r"127\.0\.0\.1 +/hook +job-1 +completed +delivered\n", table)
    assert table.endswith("\n1 delivered, 0 left\n")
    assert "pomegranate" not in table


# --- letters that stay -----------------------------------------------------------------------


def test_letters_that_are_not_taken_stay(out, monkeypatch, capsys):
    async def run():
        port, _ = await serve(Receiver([503]), DirectoryImageStore(out), ids=("a", "b", "c"))
        receiver = Receiver([410, 200, 200])
        return receiver, await redeliver(receiver, port, monkeypatch)

    receiver, status = asyncio.run(run())
    assert (status, len(receiver.events), len(letters_below(out))) == (1, 3, 1)
    table = capsys.readouterr().out
    assert re.findall(r"(delivered|HTTP status 410)\n", table).count("HTTP status 410") == 1
    assert table.endswith("\n2 delivered, 1 left\n")


def test_filters_and_dry_run(out, monkeypatch, capsys):
    receiver = Receiver()

    async def run():
        port, _ = await serve(Receiver([503]), DirectoryImageStore(out), ids=("a", "b", "c"))

        async def script(*arguments):
            return await redeliver(receiver, port, monkeypatch, *arguments)

        def sent():
            return [event.data["job_id"] for event in receiver.events]

        assert await script("--dry-run") == 1
        assert sent() == []
        assert capsys.readouterr().out.count("not sent") == 3
        assert await script("--job", "b", "--job", "x") == 0
        assert sent() == ["b"]
        assert await script("--prefix", "live/c") == 0
        assert sent() == ["b", "c"]
        assert [path.parent.name for path in letters_below(out)] == ["a"]
        assert await script() == 0
        assert await script() == 0
        assert capsys.readouterr().out.endswith("\n0 delivered, 0 left\n")

    asyncio.run(run())


def test_letters_are_opened_with_both_secrets_of_a_rotation(out, monkeypatch, capsys):
    receiver = Receiver(secrets=(OTHER,))

    async def run():
        port, _ = await serve(Receiver([503]), DirectoryImageStore(out))
        assert await redeliver(receiver, port, monkeypatch, secrets=OTHER) == 1
        assert "expected a seal by one of PIXPOD_WEBHOOK_SECRETS" in capsys.readouterr().out
        assert receiver.events == []
        return await redeliver(receiver, port, monkeypatch, secrets=f"{OTHER},{SECRET}")

    assert asyncio.run(run()) == 0
    assert receiver.types == ["completed"]


def test_receiver_that_is_not_opened_gets_nothing(out, monkeypatch, capsys):
    receiver = Receiver()

    async def run():
        port, _ = await serve(Receiver([503]), DirectoryImageStore(out))
        closed = await redeliver(receiver, port, monkeypatch, PIXPOD_ALLOW_TARGETS="10.0.0.1")
        assert "expected a host with public addresses" in capsys.readouterr().out
        return closed

    assert asyncio.run(run()) == 1
    assert receiver.events == []


def test_letters_that_cannot_be_listed(out, monkeypatch, capsys):
    assert main([]) == 2
    assert "PIXPOD_WEBHOOK_SECRETS: expected those of the worker" in capsys.readouterr().err
    monkeypatch.setenv("PIXPOD_WEBHOOK_SECRETS", SECRET)
    monkeypatch.setenv("PIXPOD_S3_BUCKET", "images")
    monkeypatch.setenv("PIXPOD_S3_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("PIXPOD_S3_ACCESS_KEY_ID", "worker")
    monkeypatch.setenv("PIXPOD_S3_SECRET_ACCESS_KEY", "pomegranate")
    assert main([]) == 2
    error = capsys.readouterr().err
    assert "scripts/redeliver: cannot list the bucket: EndpointConnectionError\n" in error
    assert "pomegranate" not in error


# --- in a bucket -----------------------------------------------------------------------------


def variables_of(server, **keys):
    keys = {"id": server.access_key_id, "secret": server.secret_access_key} | keys
    return {
        "PIXPOD_S3_BUCKET": server.bucket,
        "PIXPOD_S3_ENDPOINT_URL": server.endpoint_url,
        "PIXPOD_S3_ADDRESSING_STYLE": "path",
        "PIXPOD_S3_PREFIX": "live",
        "PIXPOD_S3_ACCESS_KEY_ID": keys["id"],
        "PIXPOD_S3_SECRET_ACCESS_KEY": keys["secret"],
    }


def test_letters_in_a_bucket(s3_server, monkeypatch, capsys):
    receiver = Receiver()
    for number in range(3):
        s3_server.put(f"live/other/{number}.png", b"an image")

    async def run():
        store = S3ImageStore(s3_server.settings())
        port, _ = await serve(Receiver([503]), store, ids=("a", "b"))
        assert len(s3_server.all_keys()) == 5
        env = variables_of(s3_server)
        return await redeliver(
            receiver, port, monkeypatch, "--prefix", "a", **env
        ), await redeliver(receiver, port, monkeypatch, **env)

    assert asyncio.run(run()) == (0, 0)
    assert [event.data["job_id"] for event in receiver.events] == ["a", "b"]
    assert s3_server.all_keys() == [f"live/other/{number}.png" for number in range(3)]


def policies():
    """The two of the documentation: those of a worker and of the script."""
    blocks = re.findall(r"```json\n(.*?)```", DELIVERY.read_text(encoding="utf-8"), re.DOTALL)
    found = [each for each in blocks if '"Statement"' in each]
    assert len(found) == 2
    return [each.replace("BUCKET", "images").replace("PREFIX", "live") for each in found]


@contextmanager
def server_with_users(policies):
    """A moto that is strict, and the keys of a user for each policy."""
    with running_moto(is_strict=False) as server:
        iam = Session().client(
            "iam",
            endpoint_url=server.endpoint_url,
            region_name="us-east-1",
            aws_access_key_id=server.access_key_id,
            aws_secret_access_key=server.secret_access_key,
        )
        users = []
        for number, policy in enumerate(policies):
            name = f"user-{number}"
            iam.create_user(UserName=name)
            iam.put_user_policy(UserName=name, PolicyName="s3", PolicyDocument=policy)
            key = iam.create_access_key(UserName=name)["AccessKey"]
            users.append({"id": key["AccessKeyId"], "secret": key["SecretAccessKey"]})
        iam.close()
        _post(f"{server.endpoint_url}/moto-api/reset-auth", b"0")
        yield server, users


def _post(url, body):
    headers = {"Content-Type": "text/plain"}
    request = urllib.request.Request(url, data=body, headers=headers, method="POST")
    urllib.request.urlopen(request, timeout=5).close()


def test_rights_of_the_documentation_are_enough(monkeypatch, capsys):
    receiver = Receiver()

    async def run():
        with server_with_users(policies()) as (server, (worker, script)):
            settings = server.settings(
                access_key_id=worker["id"],
                secret_access_key=SecretStr(worker["secret"]),
            )
            port, _ = await serve(Receiver([503]), S3ImageStore(settings))
            (key,) = server.all_keys()
            assert key.startswith("live/job-1/")
            of_worker, of_script = variables_of(server, **worker), variables_of(server, **script)
            assert await redeliver(receiver, port, monkeypatch, **of_worker) == 2
            assert "cannot list the bucket: AccessDenied" in capsys.readouterr().err
            assert await redeliver(receiver, port, monkeypatch, **of_script) == 0
            assert server.all_keys() == []

    asyncio.run(run())
    assert receiver.types == ["completed"]
