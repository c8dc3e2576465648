"""Many devices and many processes: meshes, where arrays live, what crosses."""
