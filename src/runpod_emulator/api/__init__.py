"""HTTP: routes for workers, clients and people, and the JSON that travels."""
