"""The data room as a page: a server on this machine alone, and the page itself in static/."""
