"""What several test modules stand on: a served application, and a vendor that plays a script."""
