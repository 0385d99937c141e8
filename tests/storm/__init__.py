"""Programs that end in every way at any moment, and what must be true of what is said of them then."""
