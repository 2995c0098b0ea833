"""Results for the eye: a page that runs in the browser, and a sheet of results in one file."""
