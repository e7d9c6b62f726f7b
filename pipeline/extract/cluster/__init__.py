"""Making clips on a cluster: whole shards by actors on other machines, adopted by the process that holds the lock."""
