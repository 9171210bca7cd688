"""Settings, space, plan, resources and location of a study."""
