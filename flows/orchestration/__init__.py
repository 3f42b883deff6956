"""How the flows are chained, retried, resumed and registered with Prefect."""
