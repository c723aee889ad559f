"""What a system found, how sure the comparison is, what it costs, and the report. Receives engines and indexes."""
