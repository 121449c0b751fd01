"""What reads labels from a representation, and how well."""
