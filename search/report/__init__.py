"""One study as an HTML page, Markdown and charts."""
