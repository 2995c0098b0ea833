"""HTML layer of the page, the sheet and the report: document, tables, result cards, stylesheet, thumbnails."""
