"""Every answer is as the OpenAPI document says, whatever is asked."""

from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytest.importorskip("fastapi", reason='needs pip install "cmrhash[serve]"')

from schema_walk import Walk
from serving import photo

FAULT = pytest.mark.faults("web page: requests drawn from its OpenAPI document")
KNOWN = {
    "ident": ["i3", "i5"],
    "id": ["i3", None],
    "lang": ["en", "de"],
    "name": ["distances", "training"],
    "run": [""],
}
QUIET = settings(max_examples=20, suppress_health_check=list(HealthCheck))


def sent(client, method, path, request):
    """The answer to a drawn request."""
    places, query, fields, files, _ = request
    for name, value in places.items():
        path = path.replace(f"{{{name}}}", quote(value, safe=""))
    body = {"data": fields, "files": files} if method == "post" else {}
    return client.request(method, path, params=query, headers={"accept": "*/*"}, **body)


@FAULT
@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(
            ("get", path)
            for path in ("/api/search", "/healthz", "/thumb/{ident}", "/photo/{ident}", "/plot/{name}.svg")
        ),
        ("post", "/api/search"),
    ],
)
def test_answers_are_as_documented(client, made, faults, method, path):
    walk = Walk(client.get("/openapi.json").json())

    @QUIET
    @given(st.data())
    def asked(data):
        request = data.draw(walk.requests(method, path, KNOWN, photo(made, 3)))
        faults.tried += 1
        answer = sent(client, method, path, request)
        assert walk.faults(method, path, answer) == []
        assert answer.status_code < 500
        if request[-1] and path != "/api/search":  # sentences of unknown words and no query at all are refused, too
            assert answer.status_code == 200
        faults.survived += 1

    asked()


def test_all_operations_are_walked_and_their_refusals_are_described(client):
    document = client.get("/openapi.json").json()
    assert sorted(Walk(document).operations()) == [
        ("get", "/api/search"),
        ("get", "/healthz"),
        ("get", "/photo/{ident}"),
        ("get", "/plot/{name}.svg"),
        ("get", "/thumb/{ident}"),
        ("post", "/api/search"),
    ]
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
def test_no_address_leads_to_another_one_by_a_slash(client):
    for path in ("/healthz/", "/scores/", "/api/search/"):
        assert (client.get(path).status_code, client.get(path).headers.get("location")) == (404, None)
