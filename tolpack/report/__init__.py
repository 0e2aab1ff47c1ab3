"""Results for people: text tables."""
