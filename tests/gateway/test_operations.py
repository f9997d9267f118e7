import re

import pytest
from prometheus_client.parser import text_string_to_metric_families

CHAT = {"model": "toy", "messages": [{"role": "user", "content": "Hi"}]}


async def samples(http):
    text = (await http.get("/metrics")).text
    families = text_string_to_metric_families(text)
    return {(s.name, *sorted(s.labels.items())): s.value for family in families for s in family.samples}


async def test_alive_whatever_triton_does(http, transport):
    transport.away = True
    assert (await http.get("/livez")).json() == {"status": "alive"}


async def test_ready_names_triton_and_each_model(http, transport):
    transport.served = ["toy", "other"]
    response = await http.get("/readyz")
    assert response.status_code == 200
    assert response.json() == {
        "status": "ready",
        "triton": "ready",
        "models": {"toy": "ready", "other": "ready", "minilm": "ready"},
    }


@pytest.mark.parametrize(
    "trouble",
    [
        {"away": True},
        {"troubles": {"toy": "toy_engine: unloaded"}},
        {"troubles": {"minilm": "no such file"}},
        {"served": [], "embedding": []},
    ],
    ids=["away", "model", "embedder", "none"],
)
async def test_not_ready_is_503_and_says_what_is_missing(http, transport, trouble):
    for name, value in trouble.items():
        setattr(transport, name, value)
    response = await http.get("/readyz")
    assert response.status_code == 503
    body = response.json()
    assert body["status"] == "not ready"
    for name, why in trouble.get("troubles", {}).items():
        assert body["models"][name] == f"not ready: {why}"
    if "away" in trouble:
        assert "does not answer" in body["triton"]


@pytest.mark.parametrize("path", ["/v1/models", "/v1/models/toy"])
async def test_triton_away_is_503_with_a_time_to_retry(http, transport, path):
    transport.away = True
    response = await http.get(path)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    response = await http.post("/v1/chat/completions", json=CHAT)
    assert (response.status_code, response.json()["error"]["code"]) == (503, "unavailable")


async def test_metrics_count_requests_and_tokens(http):
    for stream in (False, True):
        await http.post("/v1/chat/completions", json={**CHAT, "stream": stream, "n": 2})
    await http.post("/v1/chat/completions", json={})
    await http.get("/nowhere")
    counted = await samples(http)
    route = ("route", "/v1/chat/completions")
    requests = "trident_gateway_requests_total"
    assert counted[requests, ("method", "POST"), route, ("status", "200")] == 2
    assert counted[requests, ("method", "POST"), route, ("status", "400")] == 1
    assert counted[requests, ("method", "GET"), ("route", "unmatched"), ("status", "404")] == 1
    assert counted["trident_gateway_prompt_tokens_total", ("model", "toy")] == 2 * 7
    assert counted["trident_gateway_generation_tokens_total", ("model", "toy")] == 2 * 2 * 2
    assert counted["trident_gateway_time_to_first_token_seconds_count", ("model", "toy")] == 2
    assert counted[("trident_gateway_requests_running",)] == 0
    assert counted[("trident_gateway_disconnects_total",)] == 0


async def test_a_request_id_is_echoed_if_harmless_and_made_otherwise(http, logs):
    given = await http.get("/livez", headers={"x-request-id": "abc-1"})
    assert given.headers["x-request-id"] == "abc-1"
    for harmful in ("", "a b", "x" * 129, 'a"b'):
        made = (await http.get("/livez", headers={"x-request-id": harmful})).headers["x-request-id"]
        assert re.fullmatch("[0-9a-f]{32}", made)


async def test_every_request_is_one_log_line(http, logs):
    await http.post("/v1/chat/completions", json=CHAT)
    (line,) = [entry for entry in logs if entry["event"] == "request"]
    assert (line["method"], line["path"], line["status"]) == ("POST", "/v1/chat/completions", 200)
    assert line["disconnected"] is False


async def test_the_api_document_describes_the_bodies(http):
    document = (await http.get("/openapi.json")).json()
    schema = document["paths"]["/v1/chat/completions"]["post"]["requestBody"]["content"]["application/json"]
    name = schema["schema"]["$ref"].rpartition("/")[2]
    properties = document["components"]["schemas"][name]["properties"]
    assert {"model", "messages", "temperature", "stream"} <= set(properties)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', (await http.get("/openapi.json")).text))
    assert references <= set(document["components"]["schemas"])
    assert (await http.get("/docs")).status_code == 200
