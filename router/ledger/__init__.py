"""The ledger: every attempt on record before its vendor is called, settled once, carried into the store in batches."""
