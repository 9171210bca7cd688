"""One study as a page, a text and charts."""
