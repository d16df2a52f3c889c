"""The receivers of the client's README, which stand there for people to copy."""

import base64
import json
import re
from datetime import UTC, datetime
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from standardwebhooks import Webhook

README = Path(__file__).resolve().parents[3] / "src" / "pixpod_client" / "README.md"
SECRET = "whsec_" + base64.b64encode(b"secret of the receivers, 32 bytes").decode()
BODY = json.dumps(
    {"type": "completed", "timestamp": "2026-01-02T03:04:05+00:00", "data": {"job_id": "job-1"}}
)


def app_of(framework):
    """The `app` of the block that imports this framework."""
    blocks = re.findall(r"```python\n(.*?)```", README.read_text(encoding="utf-8"), re.DOTALL)
    (block,) = (each for each in blocks if f"from {framework} import" in each)
    namespace: dict = {"__name__": "receiver"}
    exec(compile(block, str(README), "exec"), namespace)
    return namespace["app"]


@pytest.fixture(params=["fastapi", "flask"])
def post(request, monkeypatch):
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    app = app_of(request.param)
    client = TestClient(app) if request.param == "fastapi" else app.test_client()
    content = "content" if request.param == "fastapi" else "data"

    def send(body, headers):
        return client.post("/pixpod", headers=headers, **{content: body}).status_code

    return send


def headers(secret=SECRET):
    now = datetime.now(UTC)
    return {
        "webhook-id": "msg_1",
        "webhook-timestamp": str(int(now.timestamp())),
        "webhook-signature": Webhook(secret).sign("msg_1", now, BODY),
        "content-type": "application/json",
    }


def test_event_is_taken_once(post, capsys):
    assert post(BODY, headers()) in (200, 204)
    assert post(BODY, headers()) in (200, 204)
    assert capsys.readouterr().out == "completed job-1\n"


def test_forged_and_malformed_ones_are_refused(post, capsys):
    forged = headers("whsec_" + base64.b64encode(b"secret of somebody else, 32 bytes").decode())
    assert post(BODY, forged) == 401
    assert post(b"\xff", {**headers(), "webhook-signature": "v1,a,b"}) == 401
    assert capsys.readouterr().out == ""
