"""Results for people: the terminal table and the self-contained HTML page."""
