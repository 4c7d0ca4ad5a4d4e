"""Everything that is shown to people: tables, lines and pictures."""
