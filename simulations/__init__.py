"""A federation inside one machine: hospitals made by partitioning one dataset by patient."""
