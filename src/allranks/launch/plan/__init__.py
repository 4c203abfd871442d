"""What is predicted of a config on given nodes, before anything is started."""
