"""Any implementation of attention, held to the laws."""
