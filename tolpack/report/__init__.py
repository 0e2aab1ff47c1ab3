"""Results as text tables, pictures and a page for a browser."""
