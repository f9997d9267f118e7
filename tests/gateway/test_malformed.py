import pytest

from tests.gateway.malformed import JSON, MALFORMED


def name_of(case):
    return f"{case.path[4:8]}-{case.param}-{case.content[:60]!r}"


def test_there_are_at_least_a_hundred():
    assert len(MALFORMED) >= 100


@pytest.mark.parametrize("case", MALFORMED, ids=name_of)
async def test_a_malformed_request_is_refused_by_the_fields_name(http, transport, case):
    content = case.content.replace(b"MODEL", b"toy")
    response = await http.post(case.path, content=content, headers=case.headers)
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (case.status, case.param), error
    assert error["type"] == "invalid_request_error"
    if case.param is not None:
        assert case.param in error["message"] or case.status == 404
    assert transport.asked == []


async def test_a_body_above_the_bound_is_413_whether_announced_or_not(http, settings):
    async def chunks():
        for _ in range(settings.max_body_bytes // 1000 + 2):
            yield b" " * 1000

    announced = await http.post(
        "/v1/chat/completions", content=b" " * (settings.max_body_bytes + 1), headers=JSON
    )
    unannounced = await http.post("/v1/chat/completions", content=chunks(), headers=JSON)
    for response in (announced, unannounced):
        assert response.status_code == 413
        assert response.json()["error"]["code"] == "request_too_large"


async def test_unknown_routes_and_methods_answer_in_the_same_form(http):
    missing = await http.get("/v1/nothing")
    wrong = await http.get("/v1/chat/completions")
    assert (missing.status_code, missing.json()["error"]["code"]) == (404, "unknown_url")
    assert "GET /v1/nothing" in missing.json()["error"]["message"]
    assert (wrong.status_code, wrong.json()["error"]["code"]) == (405, "method_not_allowed")
    assert wrong.headers["allow"] == "POST"


async def test_braces_in_a_path_are_only_text(http):
    response = await http.get("/{method.__class__}")
    assert "GET /{method.__class__}" in response.json()["error"]["message"]
