"""What happens, in order: flows, and the command line."""

import logging

# In a worker's runs the root logger lets warnings pass alone; what an event says is of a lower level.
logging.getLogger("perennial").setLevel(logging.INFO)
