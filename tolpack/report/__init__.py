"""Results for people: text tables, and a page for a browser."""
