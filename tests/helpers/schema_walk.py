"""Requests drawn from an OpenAPI document, and answers checked against it."""

from __future__ import annotations

from hypothesis import strategies as st

ODD = st.one_of(st.text(max_size=12), st.integers().map(str), st.sampled_from(["", " ", "0", "-1", "1e9", "nan", "\0"]))


class Walk:
    """The operations of a document: strategies of requests to them, and what their answers break."""

    def __init__(self, document):
        self.document = document

    def operations(self):
        """Pairs (method, path)."""
        return [(method, path) for path, own in self.document["paths"].items() for method in own]

    def valid(self, schema, name, known):
        """Values of a schema as strings, None for a missing one. known: name -> values that exist."""
        schema = self._followed(schema)
        if name in known:
            return st.sampled_from(known[name])
        if "anyOf" in schema:
            return st.one_of([self.valid(each, "", {}) for each in schema["anyOf"]])
        if "enum" in schema:
            return st.sampled_from(schema["enum"])
        if schema.get("type") == "integer":
            return st.integers(schema.get("minimum"), schema.get("maximum")).map(str)
        return st.none() if schema.get("type") == "null" else st.text(max_size=schema.get("maxLength", 20))

    def requests(self, method, path, known, files):
        """Strategy of (path, query, form fields, files, whether all of it follows the schema)."""
        own = self.document["paths"][path][method]
        fields = [(p["in"], p["name"], p.get("required", False), p["schema"]) for p in own.get("parameters", [])]
        body = own.get("requestBody", {}).get("content", {})
        for content in body.values():
            form = self._followed(content["schema"])
            required = form.get("required", [])
            fields += [("form", name, name in required, schema) for name, schema in form["properties"].items()]

        @st.composite
        def drawn(draw):
            odd = draw(st.booleans())
            sent = {"path": {}, "query": {}, "form": {}, "file": {}}
            for place, name, required, schema in fields:
                if not required and draw(st.booleans()):
                    continue
                if self._followed(schema).get("contentMediaType") or self._followed(schema).get("format") == "binary":
                    sent["file"][name] = ("a.jpg", draw(st.binary(max_size=50)) if odd else files)
                    continue
                value = draw(ODD if odd else self.valid(schema, name, known))
                if value is not None:
                    sent[place][name] = value
            return sent["path"], sent["query"], sent["form"], sent["file"], not odd

        return drawn()

    def faults(self, method, path, answer):
        """What an answer breaks: an undocumented status or type, or a body that is not as documented."""
        responses = self.document["paths"][path][method]["responses"]
        said = responses.get(str(answer.status_code))
        if said is None:
            return [f"status {answer.status_code} is not documented"]
        kind = answer.headers.get("content-type", "").split(";")[0]
        content = said.get("content", {})
        if kind not in content and f"{kind.split('/')[0]}/*" not in content:
            return [f"{kind} is not documented for {answer.status_code}"]
        if kind != "application/json":
            return []
        return self._wrong(answer.json(), content[kind]["schema"], "body")

    def _followed(self, schema):
        while "$ref" in schema:
            schema = self.document["components"]["schemas"][schema["$ref"].rpartition("/")[2]]
        return schema

    def _wrong(self, value, schema, where):
        schema = self._followed(schema)
        if "anyOf" in schema:
            found = [self._wrong(value, each, where) for each in schema["anyOf"]]
            return min(found, key=len)
        if "const" in schema or "enum" in schema:
            return [] if value in schema.get("enum", [schema.get("const")]) else [f"{where}: {value!r}"]
        types = {"string": str, "integer": int, "number": (int, float), "boolean": bool, "null": type(None)}
        types |= {"array": list, "object": dict}
        if "type" in schema and not isinstance(value, types[schema["type"]]):
            return [f"{where}: {value!r} is no {schema['type']}"]
        wrong = [f"{where}: no {name}" for name in schema.get("required", []) if name not in value]
        if isinstance(value, list):
            wrong += [
                each for n, one in enumerate(value) for each in self._wrong(one, schema["items"], f"{where}[{n}]")
            ]
        for name, own in schema.get("properties", {}).items():
            wrong += self._wrong(value[name], own, f"{where}.{name}") if name in value else []
        return wrong
