"""Files to networks and back: whatever published them. Light, so that the table can be listed without torch."""
