"""A study as asked for, and where it lies: settings, space, plan, resources, location."""
