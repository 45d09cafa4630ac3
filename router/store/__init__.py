"""What is kept: SQLite or Postgres through SQLAlchemy Core. One module a noun; none knows HTTP or a plugin."""
