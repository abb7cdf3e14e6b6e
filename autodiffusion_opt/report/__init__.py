"""Reports: tables and pictures of what a study holds."""
