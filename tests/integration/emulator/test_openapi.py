"""The description of the client API: valid, complete, and true of what is answered."""

from collections import defaultdict

import jsonschema
import pytest
import requests
from openapi_spec_validator import validate
from support.endpoint_client import worked_by_hand

from runpod_emulator.api import openapi
from runpod_emulator.api.client_api import ClientApi

ACKNOWLEDGED = "/v2/{endpoint}/run"
STATUS = "/v2/{endpoint}/status/{job}"
STREAM = "/v2/{endpoint}/stream/{job}"
HEALTH = "/v2/{endpoint}/health"


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    with worked_by_hand(tmp_path_factory.mktemp("openapi")) as parts:
        yield parts


@pytest.fixture(scope="module")
def document(parts):
    """As anybody gets it, without a key."""
    answer = requests.get(f"{parts[0].url}/openapi.json", timeout=10)
    assert answer.headers["Content-Type"].startswith("application/json")
    return answer.json()


def test_it_is_a_valid_openapi_document(document):
    validate(document)


def test_every_client_route_is_described_and_nothing_else(parts, document):
    served = defaultdict(set)
    for route in ClientApi(parts[0].gateway).routes():
        served[route.path].add(route.method.lower())
    described = {path: set(operations) for path, operations in document["paths"].items()}
    assert described == served


def test_operations_have_names_of_their_own(document):
    names = [
        operation["operationId"]
        for operations in document["paths"].values()
        for operation in operations.values()
    ]
    assert len(set(names)) == len(names)


def test_answers_are_as_described(parts, document):
    emulator, client, worker = parts
    ended, queued = client.submit({"a": 1}), client.post("/run", {"input": 1})
    check(document, ACKNOWLEDGED, "post", queued.json())
    worker.take()
    worker.stream(ended, "item")
    check(document, STATUS, "get", client.status(ended))
    check(document, STREAM, "get", client.get(f"/stream/{ended}").json())
    worker.done(ended, output={"b": 2})
    for job_id in (ended, queued.json()["id"]):
        check(document, STATUS, "post", client.status(job_id))
    check(document, HEALTH, "get", client.get("/health").json())
    assert emulator.job(ended)["status"] == "COMPLETED"


def test_a_request_as_described_is_accepted(parts, document):
    _, client, _ = parts
    body = {
        "input": {"prompt": "x"},
        "webhook": "http://127.0.0.1:9/",
        "policy": {"executionTimeout": 5000, "ttl": 10000, "lowPriority": True},
        "s3Config": {"accessId": "a"},
    }
    reference = document["paths"][ACKNOWLEDGED]["post"]["requestBody"]["content"]
    assert reference == {
        "application/json": {"schema": {"$ref": "#/components/schemas/RunRequest"}}
    }
    schemas = document["components"]["schemas"]
    jsonschema.validate(body, {**schemas["RunRequest"], "components": {"schemas": schemas}})
    assert client.post("/run", body).status_code == 200


def test_each_call_makes_a_document_of_its_own():
    openapi.document()["paths"].clear()
    assert openapi.document()["paths"]


def check(document, path, method, body):
    answer = document["paths"][path][method]["responses"]["200"]
    jsonschema.validate(body, answer["content"]["application/json"]["schema"])
