"""Show: plots, reports and the web page of trained runs. It may import search and the rooms above."""
