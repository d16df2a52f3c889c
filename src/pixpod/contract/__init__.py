"""The JSON edge: types, payload, rules and problems."""
