"""Every answer is as the OpenAPI document says, whatever is asked; Schemathesis asks."""

import json
import os
import re
import subprocess
import sys
from urllib.parse import urlsplit

import pytest

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from served_process import serving

FAULT = pytest.mark.faults("web page: requests drawn from its OpenAPI document")
SETTINGS = """
[generation]
deterministic = true
database = "none"

[dictionaries]
items.values = ["i3", "i5"]
plots.values = ["distances", "training"]
words.values = ["a dog", "dog", "Hund"]
languages.values = ["en", "de"]

[parameters]
ident.dictionary = "items"
id.dictionary = "items"
name.dictionary = "plots"
q.dictionary = "words"
lang.dictionary = "languages"
run = ""

# A search for nothing, for unknown words and with a file that is no photo fits the document and is refused.
[checks]
positive_data_acceptance.expected-statuses = ["2xx", 400, 404]
"""
ANSWERED = {("GET", path) for path in ("/api/search", "/healthz", "/photo/i3", "/thumb/i3", "/plot/distances.svg")}
ANSWERED |= {("POST", "/api/search")}


@FAULT
@pytest.mark.slow
def test_answers_are_as_documented(made, tmp_path, faults):
    (tmp_path / "settings.toml").write_text(SETTINGS)
    program = [sys.executable, "-m", "schemathesis.cli", "--config-file", "settings.toml", "run", "--no-color"]
    options = ["--max-examples", "20", "--report-har-path", "exchanges.har"]
    environment = os.environ | {"SCHEMATHESIS_HOOKS": "schema_hooks", "PYTHONPATH": os.pathsep.join(sys.path)}
    with serving(made) as (process, port, _):
        command = [*program, *options, f"http://127.0.0.1:{port}/openapi.json"]
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
        assert process.poll() is None
    assert done.returncode == 0, done.stdout
    generated, passed = re.search(r"(\d+) generated, (\d+) passed", done.stdout).groups()
    faults.tried += int(generated)
    faults.survived += int(passed)
    exchanges = json.loads((tmp_path / "exchanges.har").read_text())["log"]["entries"]
    answered = {
        (each["request"]["method"], urlsplit(each["request"]["url"]).path)
        for each in exchanges
        if each["response"]["status"] == 200
    }
    assert answered >= ANSWERED


def test_refusals_and_bounds_are_described(client):
    document = client.get("/openapi.json").json()
    responses = document["paths"]["/api/search"]["get"]["responses"]
    assert {"200", "400", "401", "403", "404", "405", "421", "422", "429", "500"} == responses.keys()
    number = {p["name"]: p["schema"] for p in document["paths"]["/api/search"]["get"]["parameters"]}["k"]
    assert (number["minimum"], number["maximum"], number["default"]) == (1, 200, 24)
    assert {"408", "413"} < document["paths"]["/api/search"]["post"]["responses"].keys()
    assert "null" not in str(document["paths"])  # no value of a query or form means "left out"


@FAULT
@pytest.mark.parametrize("k", [0, 201, -1, 10**30])
def test_numbers_out_of_the_documented_bounds_are_refused(client, k):
    assert client.get("/api/search", params={"id": "i3", "k": k}).status_code in (400, 422)
    assert client.get("/api/search", params={"id": "i3", "k": 200}).status_code == 200


@FAULT
@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("PUT", "/", "GET, POST"),
        ("DELETE", "/api/search", "GET, POST"),
        ("OPTIONS", "/healthz", "GET"),
        ("PUT", "/photo/i3", "GET"),
        ("POST", "/healthz", "GET"),
        ("POST", "/thumb/i3", "GET"),
    ],
)
def test_a_refused_method_names_those_that_are_allowed(client, method, path, allowed):
    answer = client.request(method, path)
    assert (answer.status_code, answer.headers["allow"]) == (405, allowed)


@FAULT
@pytest.mark.parametrize(("field", "value"), [("to", "nowhere"), ("k", "many")])
def test_a_refusal_names_the_field(client, field, value):
    for answer in (
        client.get("/api/search", params={"q": "dog", field: value}),
        client.post("/api/search", files={"photo": b"x"}, data={field: value}),
    ):
        assert answer.status_code == 422
        assert answer.json()["error"].startswith(f"{field}: ")


@FAULT
def test_no_address_leads_to_another_one_by_a_slash(client):
    for path in ("/healthz/", "/scores/", "/api/search/"):
        assert (client.get(path).status_code, client.get(path).headers.get("location")) == (404, None)
