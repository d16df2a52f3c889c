"""The JSON edge: types, payload, rules, problems and JSON Schema."""
