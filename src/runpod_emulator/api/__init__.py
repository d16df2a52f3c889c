"""HTTP: routes for workers, clients and people, and the JSON of requests and answers."""
