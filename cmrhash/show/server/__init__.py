"""Web server: search in the browser, and the HTTP API."""
