"""A registry under steady load for minutes or hours, watched."""
