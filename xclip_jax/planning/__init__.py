"""Would a run fit onto machines that are not here, and what would bound its speed?"""
