"""What was seen, in numbers: records, tables, and what follows from the weights."""
