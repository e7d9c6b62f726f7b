"""Stage one itself: jobs, the engine that runs them, and what turns decoded clips into records of a store."""
