"""Build the model that is trained: load, adapters, packed attention, parallel strategies. Import from its modules."""
