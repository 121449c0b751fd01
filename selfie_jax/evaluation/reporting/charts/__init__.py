"""The figures of the report page."""
