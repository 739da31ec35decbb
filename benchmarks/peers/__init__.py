"""The ways of running a model that are compared, a file per engine family; the table is contenders.py."""
