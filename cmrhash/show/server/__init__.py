"""The web page: search in the browser, and the same results as one HTML file."""
