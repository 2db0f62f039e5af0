"""The resource: types, names and reasons. The bottom layer of the operator."""
