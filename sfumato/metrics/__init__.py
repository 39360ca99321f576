"""Honest figures: *resize*, *features*, *statistics* and *distance* apart, each named in every number."""
