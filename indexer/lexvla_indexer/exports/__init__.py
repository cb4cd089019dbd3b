"""Files that other engines load, and the queries that they answer."""
