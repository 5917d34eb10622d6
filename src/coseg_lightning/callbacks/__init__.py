"""Lightning callbacks for the end of stage 1: ranking and label correction."""
