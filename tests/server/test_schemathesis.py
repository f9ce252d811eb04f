"""What the OpenAPI document says holds for bodies that nobody thought of."""

import pytest
from hypothesis import HealthCheck, given, settings
from served import MODEL, fake_engine

from tpuinfer.server.app import create_app
from tpuinfer.server.bridge import Bridge
from tpuinfer.server.info import ServerInfo
from tpuinfer.testing.fake import FakeTokenizer

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
checks = pytest.importorskip("schemathesis.checks")
conformance = pytest.importorskip("schemathesis.specs.openapi.checks")

CHECKS = [
    checks.not_a_server_error,
    conformance.status_code_conformance,
    conformance.content_type_conformance,
    conformance.response_schema_conformance,
]
OPERATIONS = [
    ("/v1/chat/completions", "POST"),
    ("/v1/completions", "POST"),
    ("/tokenize", "POST"),
    ("/detokenize", "POST"),
    ("/v1/models", "GET"),
    ("/v1/capabilities", "GET"),
]


@pytest.fixture(scope="module")
def document():
    """Every call is an application's whole life; the bridge outlives them all."""
    bridge = Bridge(MODEL)
    bridge.attach(fake_engine(), FakeTokenizer())
    stop, bridge.stop = bridge.stop, lambda: None
    yield schemathesis.openapi.from_asgi("/openapi.json", create_app(bridge, ServerInfo(MODEL)))
    stop()


@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_no_server_error_and_no_schema_violation(document, path, method):
    tried = 0

    @given(case=document[path][method].as_strategy())
    @settings(
        max_examples=25,
        deadline=None,
        derandomize=True,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    def holds(case):
        nonlocal tried
        tried += 1
        if isinstance(case.body, dict) and "model" in case.body:
            case.body["model"] = MODEL
        case.call_and_validate(checks=CHECKS)

    holds()
    assert tried
